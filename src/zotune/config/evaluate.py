"""All settings of `zotune evaluate`: one frozen dataclass, one field a flag."""

import dataclasses
from pathlib import Path
from typing import Annotated, Final

from zotune.config.algorithms import EMBEDDED
from zotune.config.checks import LARGEST, check_choices, check_output
from zotune.config.errors import ConfigError, shortened
from zotune.config.flags import Flag, FlagOfField, flags_of
from zotune.config.train import TrainConfig
from zotune.hf.resolve import in_place_of_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `zotune evaluate`; the names that `zotune train` has too mean the same."""

    model_name: Annotated[str, Flag("what", "'embedded', a folder, or a name on the Hugging Face hub")] = EMBEDDED
    task: Annotated[str, Flag("what", "the task, one of those of `zotune train`")] = "sst2"
    data_dir: Annotated[
        Path | None,
        Flag(
            "data",
            "folder with parquet, jsonl or csv files in Hugging Face columns",
            default_text="generated text for the embedded model and those trained from it, otherwise the hub",
        ),
    ] = None
    train_file: Annotated[
        str | None,
        Flag("data", "data of your own, as for `zotune train`", default_text="the data of --task", metavar="FILE"),
    ] = None
    validation_file: Annotated[
        str | None,
        Flag("data", "rows to be asked", default_text="rows of --train_file that are held back", metavar="FILE"),
    ] = None
    template: Annotated[
        str | None,
        Flag(
            "data",
            "question to ask of --train_file: text with columns in braces, the last one being the answer",
            default_text="conversations in the column messages",
            metavar="TEXT",
        ),
    ] = None
    options: Annotated[
        str | None,
        Flag(
            "data",
            "answers to choose from with --template, separated by commas",
            default_text="the model writes its answer",
            metavar="A,B",
        ),
    ] = None
    samplesize_validation: Annotated[
        int | None,
        Flag(
            "data",
            "examples that are asked",
            default_text="256; at most a fifth of --train_file without --validation_file",
        ),
    ] = None
    soft_prompt: Annotated[
        bool, Flag("data", "compare label words, as --soft_prompt of `zotune train`: the way to ask a masked model")
    ] = False
    demonstrations: Annotated[int, Flag("data", "solved training examples in front of each question")] = 0
    max_seq_length: Annotated[
        int | None,
        Flag(
            "data",
            "longest question in tokens; longer ones are cut",
            default_text="what the model reads; 128 with a head of its own or label words",
        ),
    ] = None
    max_new_tokens: Annotated[int, Flag("data", "longest answer that the model writes, in tokens")] = 50
    score: Annotated[
        str,
        Flag(
            "data", "how options are compared: log-likelihood, or its mean per token", choices=("task", "sum", "mean")
        ),
    ] = "task"
    calibrate: Annotated[
        bool, Flag("data", "subtract the log-likelihood that an option has after a question without content")
    ] = False
    batchsize: Annotated[int, Flag("loop", "questions of a forward pass")] = 16
    init_seed: Annotated[int, Flag("loop", "seed of the examples and demonstrations")] = 42
    seeds: Annotated[
        str | None,
        Flag(
            "loop",
            "several seeds, separated by commas: the scores of each, their mean and standard deviation",
            default_text="--init_seed alone",
            metavar="A,B",
        ),
    ] = None
    bf16: Annotated[bool, Flag("model", "weights in bfloat16")] = False
    fp16: Annotated[bool, Flag("model", "weights in float16")] = False
    trust_remote_code: Annotated[bool, Flag("model", "let a model of the hub run its own code")] = False
    device: Annotated[
        str | None,
        Flag("model", "number of a GPU, cuda:NUMBER or cpu", default_text="the first GPU, otherwise the CPU"),
    ] = None
    adapter: Annotated[
        Path | None,
        Flag("model", "folder of an adapter that zotune train or peft has kept", default_text="the model alone"),
    ] = None
    output: Annotated[
        Path | None, Flag("results", "JSON file for scores and answers", default_text="none", metavar="FILE")
    ] = None

    def validate(self) -> None:
        """Raise `ConfigError` with one sentence for the first setting that cannot be used."""
        if not 0 <= self.demonstrations <= LARGEST:
            raise ConfigError(f"--demonstrations must be 0 or more, not {shortened(self.demonstrations)}.")
        if not 1 <= self.max_new_tokens <= LARGEST:
            raise ConfigError(f"--max_new_tokens must be 1 or more, not {shortened(self.max_new_tokens)}.")
        if self.adapter is not None and not (self.adapter / "adapter_config.json").is_file():
            if (instead := in_place_of_run(self.adapter, adapter=True)) is not None:
                raise ConfigError(f"--adapter {shortened(self.adapter)} is a run folder; {instead}.")
            raise ConfigError(f"--adapter {shortened(self.adapter)} holds no adapter_config.json; give such a folder.")
        if self.demonstrations and self.validation_file is not None and self.train_file is None:
            raise ConfigError("--demonstrations are rows of --train_file; give it too, or leave them out.")
        check_choices(self)
        for seed in self.all_seeds:
            dataclasses.replace(self.training(), init_seed=seed).validate()
        if self.output is not None:
            check_output("output", self.output)

    def training(self) -> TrainConfig:
        """The settings of `zotune train` that these ones stand for."""
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in names}
        if self.train_file is None:  # rows to be asked are enough where none are shown
            shared["train_file"] = self.validation_file
        return TrainConfig(**shared)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds that are asked with, one after the other.

        Raises:
            ConfigError: one of them is no whole number, or there twice.
        """
        if self.seeds is None:
            return (self.init_seed,)
        words = [word.strip() for word in self.seeds.split(",")]
        if not all(word.isdecimal() and len(word) < 20 for word in words):
            raise ConfigError(f"--seeds takes whole numbers, such as 13,21,42, not {shortened(self.seeds)!r}.")
        found = tuple(map(int, words))
        if len(set(found)) < len(found):
            raise ConfigError(f"--seeds {shortened(self.seeds)} names a seed twice; leave one of them out.")
        return found

    @property
    def dtype(self) -> str:
        """Of the weights, by name."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    @property
    def source(self) -> str | Path:
        """Where the rows come from, as for `zotune train`."""
        return self.training().source


EVALUATE_FLAGS: Final[dict[str, FlagOfField]] = flags_of(EvaluateConfig)
"""Every flag of `zotune evaluate` by name, in the order of the help."""
