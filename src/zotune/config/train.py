"""All settings of a training run: one frozen dataclass, one field a flag."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar

from zotune.config import checks
from zotune.config.algorithms import ALGORITHMS, EMBEDDED, Algorithm
from zotune.config.errors import ConfigError, shortened
from zotune.config.flags import Flag, FlagOfField, Kind, flags_of
from zotune.embedded.descent import reads_generated_text
from zotune.tasks import TASKS, Task, get_task
from zotune.tasks.base import VALIDATION_ROWS

if TYPE_CHECKING:
    from zotune.hf.adapters import Adapter
    from zotune.tasks.own import OwnData

T = TypeVar("T")

AUTO: Final = "auto"
"""The learning rate that is measured before the run."""

MEASURED: Final = "lr_measured"
"""Key in config.json of what `--lr auto` found."""

GUESSED: Final = "guessed"
"""Key in it where the loss showed nothing to measure, and the rate is a cautious constant."""

LIBRARIES: Final = "libraries_mb"
"""Key in config.json of what a process on a CPU held beside the model before the first step."""

SHARES: Final = "class_shares"
"""Key in config.json of the loss and accuracy of predicting how frequent the classes are."""

SCALE: Final = 1e-3
SCALES: Final = {"lora": 1e-2, "prefix": 1e-1, "prompt": 1e-1}
"""Length of a probe by what is trained, as in the experiments of MeZO (arXiv 2305.17333)."""

OWN: Final = "own"
"""Name of the task of a user's own data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `zotune train`; the names, meanings and defaults are those of its flags.

    `None` stands for "left out": `resolved()` puts the default of the chosen algorithm and model there.
    """

    # What is trained on what
    model_name: Annotated[str, Flag("what", "'embedded', a folder, or a name on the Hugging Face hub")] = EMBEDDED
    task: Annotated[str, Flag("what", " ".join(TASKS))] = "sst2"
    algorithm: Annotated[str, Flag("what", "the method", choices=tuple(ALGORITHMS))] = "LOREN"
    # Data
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
        Flag(
            "data",
            "data of your own: a csv, jsonl, json or parquet file, or NAME[:CONFIGURATION] of a data set on the hub",
            default_text="the data of --task",
            metavar="FILE",
        ),
    ] = None
    validation_file: Annotated[
        str | None,
        Flag("data", "validation rows for --train_file", default_text="rows of it that are held back", metavar="FILE"),
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
    samplesize: Annotated[int, Flag("data", "training examples, drawn from the training split")] = 512
    shots: Annotated[
        int | None,
        Flag(
            "data",
            "training examples of each class, in place of --samplesize, and as many others for the evaluations",
            default_text="--samplesize of all",
        ),
    ] = None
    samplesize_dev: Annotated[
        int,
        Flag(
            "data",
            "training examples that are held back for the evaluations; those of the validation split are then scored"
            " once, in the end",
        ),
    ] = 0
    samplesize_validation: Annotated[
        int | None,
        Flag(
            "data",
            "examples of each evaluation; with --shots and --samplesize_dev, of the last one",
            default_text="256; at most a fifth of --train_file without --validation_file",
        ),
    ] = None
    max_seq_length: Annotated[
        int | None,
        Flag(
            "data",
            "longest input in tokens; longer ones are cut",
            default_text="128; of questions to a causal model what it reads, at most 2048",
        ),
    ] = None
    soft_prompt: Annotated[
        bool, Flag("data", "ask in words and compare the label words' logits, instead of a new head")
    ] = False
    objective: Annotated[
        str | None,
        Flag(
            "data",
            "what becomes small: cross entropy of classes or options, minus the likelihood of the right answer,"
            " 1 - accuracy, f1 or exact_match, or a function of (model, batch): classes options likelihood accuracy f1"
            " exact_match FILE.py:FUNCTION",
            default_text="classes; options or likelihood where a task has no classes",
        ),
    ] = None
    score: Annotated[
        str,
        Flag(
            "data",
            "how options are compared: log-likelihood, or its mean per token",
            choices=("task", "sum", "mean"),
        ),
    ] = "task"
    max_new_tokens: Annotated[int, Flag("data", "longest answer that a model writes, in tokens")] = 32
    # Loop
    epochs: Annotated[float, Flag("loop", "passes over the training examples")] = 10.0
    budget_queries: Annotated[
        int | None,
        Flag(
            "loop",
            "forward passes of one example to be spent, in place of --epochs; a backward pass costs two",
            default_text="as many as --epochs take",
        ),
    ] = None
    batchsize: Annotated[int, Flag("loop", "examples a step, over all processes together")] = 16
    batchsize_limit: Annotated[
        int | None, Flag("loop", "largest micro-batch, to save memory", default_text="the whole batch at once")
    ] = None
    on_out_of_memory: Annotated[
        str,
        Flag("loop", "halve the micro-batch and go on when memory runs out, or stop", choices=("stop", "halve")),
    ] = "stop"
    eval_every: Annotated[float, Flag("loop", "evaluate every so many epochs")] = 1.0
    evaluations: Annotated[
        int | None,
        Flag(
            "loop",
            "evaluate so many times, at equal shares of the run, in place of --eval_every",
            default_text="what --eval_every makes",
        ),
    ] = None
    early_stopping: Annotated[bool, Flag("loop", "stop when the validation accuracy no longer gets better")] = False
    patience: Annotated[int, Flag("loop", "evaluations without a better accuracy before --early_stopping stops")] = 5
    init_seed: Annotated[int, Flag("loop", "seed of everything drawn at random")] = 42
    trial: Annotated[int, Flag("loop", "another repetition: same examples, other order, directions and head")] = 0
    # Optimizer
    lr: Annotated[
        float | str | None,
        Flag(
            "optimizer",
            "learning rate; with ZOSVRG that of the full-batch steps; auto measures one before the run",
            default_text="auto; per method for first order",
            metavar="X|auto",
            words=(AUTO,),
        ),
    ] = None
    lr_scheduler_type: Annotated[
        str | None,
        Flag(
            "optimizer",
            "how the rate goes on: constant, to zero along a line or a cosine, or adaptive: it warms up, falls to zero"
            " in the last three tenths unless the loss still falls fast, and is smaller where the curvature is larger",
            default_text="adaptive for a rate that is measured, otherwise constant",
            choices=("constant", "linear", "cosine", "adaptive"),
        ),
    ] = None
    weight_decay: Annotated[
        float, Flag("optimizer", "weight decay, decoupled but for FOSGD; none on biases and norms")
    ] = 0.0
    clipping: Annotated[
        bool, Flag("optimizer", "clip the norm of the gradient, or of its zeroth-order estimate, at 1")
    ] = False
    momentum: Annotated[float, Flag("optimizer", "momentum; 0 keeps no buffer")] = 0.0
    # Zeroth order
    num_queries: Annotated[
        int | None,
        Flag(
            "queries",
            "forward passes a step; more of them are an average, then one update; with ZOSVRG a multiple of 3 is the"
            " average at --q 2, an even number those of one estimate",
            default_text="2 (ZO, ZOAdam, LOZO), 3 (ZOSVRG, HiZOO), 6 (LOREN), 8 (FZOO)",
        ),
    ] = None
    perturbation_scale: Annotated[
        float | None,
        Flag(
            "queries",
            "length of the step from the weights to a probe",
            default_text="0.001; 0.01 with --tuning lora, 0.1 with prefix and prompt",
        ),
    ] = None
    noise: Annotated[
        str | None,
        Flag(
            "queries",
            "law of the directions: gaussian rademacher",
            default_text="rademacher with FZOO, otherwise gaussian",
        ),
    ] = None
    backend: Annotated[
        str | None, Flag("queries", "code that makes the noise (same bits each)", default_text="the fastest that works")
    ] = None
    # One method each
    lr_mezosvrg_mb: Annotated[
        float | None, Flag("methods", "learning rate of the minibatch steps", default_text="that of --lr")
    ] = None
    q: Annotated[int, Flag("methods", "steps from one full-batch step to the next")] = 2
    anneal: Annotated[
        float, Flag("methods", "divide both rates by this when an epoch's mean loss is 5 % above the last; 1: never")
    ] = 5.0
    anchor: Annotated[
        str,
        Flag(
            "methods",
            "what is kept of the weights at the last full-batch step: the updates since, or a copy",
            choices=("recompute", "copy"),
        ),
    ] = "recompute"
    eps: Annotated[float, Flag("methods", "Adam's epsilon")] = 1e-08
    low_bit_adam: Annotated[int, Flag("methods", "8 keeps Adam's moments in 8 bits", choices=("0", "8"))] = 0
    rank: Annotated[int, Flag("methods", "rank of the directions")] = 2
    step_interval: Annotated[int, Flag("methods", "steps that share one V")] = 50
    hessian_smooth_type: Annotated[str, Flag("methods", "how fast the Hessian follows, by name")] = "constant1e-8"
    lr_cov: Annotated[float, Flag("methods", "learning rate of the curvature")] = 0.001
    damping: Annotated[float, Flag("methods", "damping of the curvature")] = 0.1
    momentum_bits: Annotated[
        int, Flag("methods", "bits of a number of the momentum's buffer", choices=("8", "16", "32"))
    ] = 32
    direction_rank: Annotated[
        int | None,
        Flag("methods", "rank of the directions, whose queries share a forward", default_text="dense directions"),
    ] = None
    # Model and machine
    full_parameter: Annotated[
        bool, Flag("model", "train all parameters, not only the last blocks, the final norm and the head")
    ] = False
    tuning: Annotated[
        str | None,
        Flag(
            "model",
            "what is trained: full, partial (the last blocks and the head), head, or an adapter of peft: lora, prefix,"
            " prompt, or a configuration file of peft",
            default_text="partial, or full with --full_parameter",
            metavar="WHAT",
        ),
    ] = None
    lora_rank: Annotated[int, Flag("model", "rank of --tuning lora")] = 8
    lora_alpha: Annotated[int, Flag("model", "scale of --tuning lora, times its rank")] = 16
    virtual_tokens: Annotated[int, Flag("model", "length of --tuning prefix and prompt")] = 5
    bf16: Annotated[bool, Flag("model", "weights in bfloat16 (first-order: mixed precision)")] = False
    fp16: Annotated[bool, Flag("model", "weights in float16 (first-order: mixed precision, GPU only)")] = False
    trainer_options: Annotated[
        Path | None,
        Flag(
            "model",
            "JSON file with further fields of transformers.TrainingArguments (fsdp, deepspeed, ...)",
            default_text="none",
            metavar="FILE",
        ),
    ] = None
    trust_remote_code: Annotated[bool, Flag("model", "let a model of the hub run its own code")] = False
    device: Annotated[
        str | None,
        Flag("model", "number of a GPU, cuda:NUMBER or cpu", default_text="the first GPU, otherwise the CPU"),
    ] = None
    # Results
    results: Annotated[Path, Flag("results", "folder that the run folders go to")] = Path("results")
    save_ckpt: Annotated[bool, Flag("results", "keep checkpoints and the best and last model")] = False
    merge: Annotated[
        bool, Flag("results", "with --save_ckpt and an adapter, also keep the last model with its adapter merged in")
    ] = False
    save_every: Annotated[float, Flag("results", "checkpoint every so many epochs, with --save_ckpt")] = 1.0
    logging: Annotated[str, Flag("results", "tensorboard: event files as well", choices=("csv", "tensorboard"))] = "csv"
    resume: Annotated[
        Path | None, Flag("results", "run folder to go on with, after its last step", default_text="a new run")
    ] = None

    def resolved(self) -> Self:
        """The same settings with the defaults of the algorithm and the model in place of every `None` they have.

        Raises `ConfigError` for an unknown algorithm.
        """
        checks.check_choices(self)
        algorithm = ALGORITHMS[self.algorithm]
        lr = self.lr
        if lr is None:
            lr = AUTO if algorithm.zeroth_order else self._first_order_rate(algorithm)
        return dataclasses.replace(
            self,
            task=self.task if self.train_file is None else OWN,
            full_parameter=self.full_parameter or self.tuning == "full",
            lr=lr,
            lr_scheduler_type=_default(self.lr_scheduler_type, "adaptive" if lr == AUTO else "constant"),
            lr_mezosvrg_mb=_default(self.lr_mezosvrg_mb, None if isinstance(lr, str) else lr),
            perturbation_scale=_default(self.perturbation_scale, SCALES.get(self.tuning or "", SCALE)),
            num_queries=_default(self.num_queries, algorithm.queries),
            noise=_default(self.noise, algorithm.noise),
            batchsize_limit=_default(self.batchsize_limit, self.batchsize),
            samplesize_validation=_default(self.samplesize_validation, None if self._holds_back else VALIDATION_ROWS),
        )

    @property
    def _holds_back(self) -> bool:
        """Whether validation rows are some of the user's own file, whose number says how many they may be."""
        return self.train_file is not None and self.validation_file is None

    def _first_order_rate(self, algorithm: Algorithm) -> float:
        from zotune.hf.models import width_of  # here, because it takes seconds that a misspelt flag need not wait for

        width = width_of(self.model_name, trust_remote_code=self.trust_remote_code)
        return algorithm.first_order_rate(self.model_name, self.trained, width)

    def validate(self) -> None:
        """Raise `ConfigError` with one sentence for the first setting that cannot be used."""
        checks.check(self)

    @property
    def trained(self) -> str:
        """What is trained, as the papers' lists tell it apart: "full", "lora" or "prefix"."""
        if self.tuning in ("prefix", "prompt"):
            return "prefix"
        return "full" if self.tuning in (None, "full", "partial", "head") else "lora"

    @property
    def source(self) -> str | Path:
        """Where the rows come from: a folder, `"embedded"` or `"hub"`."""
        if self.data_dir is not None:
            return self.data_dir
        return EMBEDDED if reads_generated_text(self.model_name) else "hub"

    @property
    def adapter(self) -> "Adapter | None":
        """What is trained in place of the model's own weights, if anything is.

        Raises:
            ValueError: a configuration file that cannot be used.
        """
        if self.tuning in (None, "full", "partial"):
            return None
        from zotune.hf.adapters import KINDS, Adapter, read_settings  # it loads large libraries, and --help need not

        assert self.tuning is not None
        if self.tuning in KINDS:
            settings, kind = None, self.tuning
        else:
            settings, kind = read_settings(Path(self.tuning).expanduser()), "file"
        return Adapter(
            kind=kind, rank=self.lora_rank, alpha=self.lora_alpha, tokens=self.virtual_tokens, settings=settings
        )

    def library_options(self) -> dict[str, Any]:
        """Further fields of the library's arguments.

        Raises:
            ConfigError: --trainer_options cannot be used.
        """
        if self.trainer_options is None:
            return {}
        from zotune.hf.trainer_options import read_options  # it loads large libraries, and --help need not

        try:
            return read_options(self.trainer_options, zeroth_order=self.zeroth_order)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def own(self) -> "OwnData | None":
        """Data of the user's own, if there is any.

        Raises:
            ConfigError: --options are not two or more different texts.
        """
        if self.train_file is None:
            return None
        from zotune.tasks.own import OwnData  # it loads large libraries, and --help need not

        options = tuple(text.strip() for text in self.options.split(",")) if self.options is not None else ()
        if options and (len(options) < 2 or len(set(options)) < len(options) or "" in options):
            raise ConfigError(
                f"--options takes two or more different answers, such as no,yes, not {shortened(self.options)!r}."
            )
        return OwnData(
            train=self.train_file,
            validation=self.validation_file,
            template=self.template,
            options=options,
            in_words=self.soft_prompt,
        )

    def chosen_task(self) -> Task:
        """The task that is trained.

        Raises:
            ValueError: there is none of that name, or the template is wrong.
        """
        return get_task(self.task) if self.own is None else self.own.task()

    @property
    def zeroth_order(self) -> bool:
        """True when the algorithm needs forward passes only."""
        return ALGORITHMS[self.algorithm].zeroth_order


def _default(value: T | None, default: T) -> T:
    return default if value is None else value


FLAGS: Final[dict[str, FlagOfField]] = flags_of(TrainConfig)
"""Every flag of the command line by name, in the order of the help."""


def load_settings(values: dict[str, Any]) -> TrainConfig:
    """The `TrainConfig` of a JSON object written by `dump_settings`.

    Raises `ConfigError` for names that are no setting and for values of another type.
    """
    unknown = sorted(set(values) - set(FLAGS))
    if unknown:
        raise ConfigError(f"The saved settings name {unknown[0]}, which this version of zotune does not know.")
    return TrainConfig(**{name: _loaded(name, value) for name, value in values.items()})


_JSON_TYPES: Final[dict[Kind, tuple[type[Any], ...]]] = {
    "switch": (bool,),
    "whole": (int,),
    "number": (int, float),
    "text": (str,),
    "path": (str,),
}


def _loaded(name: str, value: Any) -> Any:
    described = FLAGS[name]
    if (value is None and described.default is None) or (isinstance(value, str) and value in described.flag.words):
        return value
    # bool is an int to Python, and no number to a person.
    wrong = isinstance(value, bool) != (described.kind == "switch")
    if wrong or not isinstance(value, _JSON_TYPES[described.kind]):
        raise ConfigError(f"the setting {name} cannot be {shortened(repr(value))}.")
    return Path(str(value)) if described.kind == "path" else value


def dump_settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting by name, in types that JSON has."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
    }
