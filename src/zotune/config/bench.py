"""All settings of `zotune bench`: one frozen dataclass, one field a flag."""

import dataclasses
from pathlib import Path
from typing import Annotated, Final

from zotune.config.algorithms import ALGORITHMS
from zotune.config.checks import LARGEST, check_choices, check_output
from zotune.config.errors import ConfigError, shortened
from zotune.config.flags import Flag, FlagOfField, flags_of
from zotune.config.train import TrainConfig

ALL: Final = "all"
_METHODS: Final = tuple(name for name, entry in ALGORITHMS.items() if entry.zeroth_order)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of `zotune bench`; the names that `zotune train` has too mean the same."""

    model_name: Annotated[
        str, Flag("what", "'embedded', a folder, or a name on the Hugging Face hub", default_text="must be given")
    ] = ""
    algorithm: Annotated[
        str,
        Flag("what", "the method", choices=(ALL, *_METHODS)),
    ] = ALL
    plan: Annotated[
        bool, Flag("what", "load no weights: foretell memory and time from the model's configuration alone")
    ] = False
    batchsize: Annotated[int, Flag("data", "examples of a forward pass (train's --batchsize_limit)")] = 16
    max_seq_length: Annotated[int, Flag("data", "tokens of every example")] = 128
    samplesize: Annotated[int, Flag("data", "training examples, which a full-batch step of ZOSVRG reads")] = 512
    steps: Annotated[int, Flag("loop", "steps whose time is told")] = 1000
    rounds: Annotated[int, Flag("loop", "steps that are measured, of which the median counts")] = 3
    noise: Annotated[
        str | None,
        Flag(
            "queries",
            "law of the directions: gaussian rademacher",
            default_text="rademacher with FZOO, otherwise gaussian",
        ),
    ] = None
    full_parameter: Annotated[
        bool, Flag("model", "train all parameters, not only the last blocks, the final norm and the head")
    ] = False
    bf16: Annotated[bool, Flag("model", "weights in bfloat16")] = False
    fp16: Annotated[bool, Flag("model", "weights in float16")] = False
    trust_remote_code: Annotated[bool, Flag("model", "let a model of the hub run its own code")] = False
    device: Annotated[
        str | None,
        Flag("model", "number of a GPU, cuda:NUMBER or cpu", default_text="the first GPU, otherwise the CPU"),
    ] = None
    output: Annotated[
        Path | None, Flag("results", "JSON file for the numbers", default_text="none", metavar="FILE")
    ] = None

    def validate(self) -> None:
        """Raise `ConfigError` with one sentence for the first setting that cannot be used."""
        if not self.model_name.strip():
            raise ConfigError("Say which model: zotune bench MODEL, with a folder or a name on the hub for MODEL.")
        for name in ("steps", "rounds"):
            if not 1 <= (value := getattr(self, name)) <= LARGEST:
                raise ConfigError(f"--{name} must be from 1 to {LARGEST:,}, not {shortened(value)}.")
        if self.algorithm in ALGORITHMS and self.algorithm not in _METHODS:
            raise ConfigError(f"--algorithm {self.algorithm} is first-order; choose {ALL} or {', '.join(_METHODS)}.")
        check_choices(self)
        self.training().validate()
        if self.output is not None:
            check_output("output", self.output)

    def training(self) -> TrainConfig:
        """The settings of `zotune train` that these ones stand for, with its default algorithm for `all`."""
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in names}
        if self.algorithm == ALL:
            del shared["algorithm"]
        return TrainConfig(**shared)


BENCH_FLAGS: Final[dict[str, FlagOfField]] = flags_of(BenchConfig)
"""Every flag of `zotune bench` by name, in the order of the help."""
