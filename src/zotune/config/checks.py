"""What every setting must satisfy; each check is one sentence for the person who gave it."""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zotune.config.algorithms import ALGORITHMS, EMBEDDED
from zotune.config.errors import ConfigError, missing_package, nearest, shortened
from zotune.config.flags import flags_of
from zotune.embedded.generator import TASKS as GENERATED
from zotune.hf.resolve import resolve
from zotune.kernels import BACKENDS
from zotune.methods.hizoo import SMOOTHINGS
from zotune.noise import NOISES
from zotune.tasks.files import SUFFIXES

if TYPE_CHECKING:
    from zotune.config.train import TrainConfig

_OF_AN_ADAPTER = ("lora_rank", "lora_alpha", "virtual_tokens")
_AT_LEAST_ONE = (
    "samplesize",
    "samplesize_validation",
    "batchsize",
    "batchsize_limit",
    "patience",
    "q",
    "rank",
    "direction_rank",
    "step_interval",
    "max_new_tokens",
    *_OF_AN_ADAPTER,
    "shots",
    "budget_queries",
    "evaluations",
)
_ABOVE_ZERO = ("epochs", "eval_every", "save_every", "perturbation_scale", "eps", "damping")
_NOT_NEGATIVE = ("lr", "lr_mezosvrg_mb", "weight_decay", "lr_cov", "init_seed", "trial", "momentum", "samplesize_dev")
_SEED_LIMIT = 2**63

LARGEST_ADAPTER: Final = 10**6
"""Bound of the numbers that describe an adapter."""

TUNINGS: Final = ("full", "partial", "head", "lora", "prefix", "prompt")
"""What --tuning knows beside configuration files."""

LARGEST_BUDGET: Final = 10**12
"""Bound of a budget of forward passes."""

LARGEST: Final = 10**9
"""Most steps of a run, and the bound of every number that counts rows, tokens, steps or epochs."""

_COUNTED = (
    "samplesize",
    "shots",
    "samplesize_dev",
    "samplesize_validation",
    "max_seq_length",
    "epochs",
    "eval_every",
    "save_every",
    "patience",
    "q",
    "rank",
    "direction_rank",
    "step_interval",
    "max_new_tokens",
    "evaluations",
)
_OF_A_STEP = ("batchsize", "batchsize_limit", "num_queries")
_LARGEST_OF_A_STEP = 10**6
_LARGEST_GENERATED = 10**6


def check(config: "TrainConfig") -> None:
    """Raise `ConfigError` for the first setting of `config` that cannot be used.

    Looks at the settings and at the file system; loads neither data nor model.
    """
    check_choices(config)
    _check_ranges(config)
    _check_queries(config)
    _check_rate(config)
    _check_names(config)
    _check_tuning(config)
    _check_task(config)
    _check_places(config)
    _check_installed(config)
    config.library_options()


def check_choices(config: object) -> None:
    """Raise `ConfigError`, with the nearest name, for a setting that is none of its flag's choices."""
    for name, described in flags_of(type(config)).items():
        choices = described.flag.choices
        given = getattr(config, name)
        value = str(given)
        if choices and value not in choices and not (given is None and described.default is None):
            raise ConfigError(f"--{name} knows {_listed(choices)}, not {value!r}{nearest(value, choices)}")


def _check_ranges(config: "TrainConfig") -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{field.name} must be a finite number, not {value}.")
    for name in _AT_LEAST_ONE:
        if (value := getattr(config, name)) is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, not {value}.")
    for name in _ABOVE_ZERO:
        if (value := getattr(config, name)) is not None and value <= 0:
            raise ConfigError(f"--{name} must be above 0, not {value}.")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and value < 0:
            raise ConfigError(f"--{name} must not be negative, but is {value}.")
    bounds = (
        (_COUNTED, LARGEST),
        (_OF_A_STEP, _LARGEST_OF_A_STEP),
        (_OF_AN_ADAPTER, LARGEST_ADAPTER),
        (("budget_queries",), LARGEST_BUDGET),
    )
    for names, largest in bounds:
        for name in names:
            if (value := getattr(config, name)) is not None and value > largest:
                raise ConfigError(f"--{name} must be at most {largest:,}, not {shortened(value)}.")
    for name in ("init_seed", "trial"):
        if getattr(config, name) >= _SEED_LIMIT:
            raise ConfigError(f"--{name} must be below 2**63, but is {shortened(getattr(config, name))}.")
    if isinstance(config.lr, str) and not config.zeroth_order:
        raise ConfigError(
            f"--lr auto measures along the directions of a zeroth-order method; give {config.algorithm} a number,"
            " or leave --lr out, which gives every method its default."
        )
    if config.momentum >= 1:
        raise ConfigError(f"--momentum must be below 1, not {config.momentum}.")
    if config.anneal < 1:
        raise ConfigError(
            f"--anneal divides the learning rates, so it must be at least 1 (never), not {config.anneal}."
        )
    if config.max_seq_length is not None and config.max_seq_length < 2:
        raise ConfigError(f"--max_seq_length must be at least 2 tokens, not {config.max_seq_length}.")
    if config.bf16 and config.fp16:
        raise ConfigError("--bf16 and --fp16 exclude each other; give one of them.")


def _check_queries(config: "TrainConfig") -> None:
    algorithm = ALGORITHMS[config.algorithm]
    queries = config.num_queries
    if queries is None or not algorithm.zeroth_order:
        return
    if not algorithm.takes(queries):
        raise ConfigError(f"--num_queries with {config.algorithm} must be {algorithm.query_rule}; it is {queries}.")


def _check_rate(config: "TrainConfig") -> None:
    if config.lr_scheduler_type == "adaptive" and not config.zeroth_order:
        raise ConfigError(
            f"--lr_scheduler_type adaptive follows the slopes that queries see, and {config.algorithm} has none; take"
            " linear or cosine."
        )


def _check_names(config: "TrainConfig") -> None:
    for name, known in (("backend", BACKENDS), ("hessian_smooth_type", tuple(SMOOTHINGS)), ("noise", NOISES)):
        value = getattr(config, name)
        if value is not None and value not in known:
            raise ConfigError(f"--{name} knows {_listed(known)}, not {value!r}{nearest(value, known)}")


def _check_tuning(config: "TrainConfig") -> None:
    tuning = config.tuning
    if config.full_parameter and tuning not in (None, "full"):
        raise ConfigError(
            f"--full_parameter trains everything, so --tuning {shortened(tuning)} cannot be given with it."
        )
    adapted = tuning not in (None, "full", "partial", "head")
    if adapted and importlib.util.find_spec("peft") is None:
        raise ConfigError(missing_package("An adapter", "peft", "adapters"))
    if adapted and tuning not in TUNINGS and not Path(str(tuning)).expanduser().exists():
        raise ConfigError(
            f"--tuning knows {_listed(TUNINGS)}, or a configuration file of peft, not "
            f"{shortened(repr(tuning))}{nearest(str(tuning), TUNINGS)}"
        )
    if config.merge and not (adapted and config.save_ckpt):
        raise ConfigError("--merge belongs to an adapter that is kept; give --save_ckpt and --tuning lora with it.")
    if config.merge and tuning in ("prefix", "prompt"):
        raise ConfigError(f"--tuning {tuning} is no change of weights, so it cannot be merged; leave --merge out.")
    if adapted and tuning not in TUNINGS:
        try:
            _ = config.adapter
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _check_own(config: "TrainConfig") -> None:
    for name in ("validation_file", "template", "options"):
        if config.train_file is None and getattr(config, name) is not None:
            raise ConfigError(f"--{name} belongs to --train_file; give both, or neither.")
    if config.train_file is not None and config.data_dir is not None:
        raise ConfigError("--data_dir belongs to --task and --train_file is data of your own; give one of them.")
    if config.train_file is not None and config.soft_prompt and (config.options is None or config.template is None):
        raise ConfigError(
            "--soft_prompt compares label words, so data of your own needs --template and --options with it; give both,"
            " or leave it out."
        )


def _check_task(config: "TrainConfig") -> None:
    _check_own(config)
    try:
        config.chosen_task()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.shots is not None and not config.chosen_task().labels:
        raise ConfigError("--shots counts examples of each class, and there are no classes here; give --samplesize.")
    if config.shots is not None and config.samplesize_dev:
        raise ConfigError(
            "--shots holds its own examples back, so --samplesize_dev cannot be given with it; leave it out."
        )
    if config.train_file is not None:
        return
    if config.source == EMBEDDED and config.task not in GENERATED:
        raise ConfigError(
            f"No text is generated for the task {config.task}; give --data_dir, or one of {_listed(GENERATED)}."
        )
    for name in ("samplesize", "samplesize_dev", "samplesize_validation"):
        if config.source == EMBEDDED and (getattr(config, name) or 0) > _LARGEST_GENERATED:
            raise ConfigError(f"--{name} must be at most {_LARGEST_GENERATED:,} for generated text; give fewer.")


def _check_places(config: "TrainConfig") -> None:
    if not config.model_name.strip():
        raise ConfigError("--model_name must not be empty; give 'embedded', a folder or a name on the hub.")
    try:
        resolve(config.model_name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.data_dir is not None and not _is_folder("data_dir", config.data_dir):
        raise ConfigError(f"There is no data folder {config.data_dir}; check --data_dir.")
    for name in ("train_file", "validation_file"):
        path = Path(getattr(config, name) or "").expanduser()
        if path.suffix in SUFFIXES and not path.is_file():  # others are names on the hub
            raise ConfigError(f"There is no file {shortened(path)}; check --{name}.")
    for folder in (config.results, *config.results.parents):
        if not _is_folder("results", folder) and folder.exists():
            raise ConfigError(f"--results {config.results} cannot be made, because {folder} is a file.")
    check_device(config.device)


def _is_folder(name: str, path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise ConfigError(f"--{name} {shortened(path)} cannot be a folder: {error.strerror}.") from error


def check_device(device: str | None) -> None:
    """Raise `ConfigError` for a device that can have no such name."""
    if device is not None and not re.fullmatch(r"cpu|\d+|cuda(:\d+)?", device):
        raise ConfigError(f"--device must be cpu, the number of a GPU or cuda:NUMBER, not {device!r}.")


def check_output(name: str, path: Path) -> None:
    """Raise `ConfigError` unless the file of the flag `name` can be written.

    What is there stays, and nothing new is left behind.
    """
    try:
        target = path.resolve()
        if target.is_dir() or not target.parent.is_dir():
            raise ConfigError(f"--{name} {shortened(path)} must be a file in a folder that is there.")
        if not target.exists():
            target.open("xb").close()
            target.unlink()
        elif target.is_file():
            target.open("ab").close()
    except (OSError, RuntimeError) as error:  # links that lead in a circle are a RuntimeError
        reason = getattr(error, "strerror", None) or "its links lead nowhere"
        raise ConfigError(f"--{name} {shortened(path)} cannot be written ({reason}); name another file.") from error


def _check_installed(config: "TrainConfig") -> None:
    if config.logging == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(missing_package("--logging tensorboard", "tensorboard", "tensorboard"))
    low_bit = config.algorithm == "ZOAdam" and config.low_bit_adam == 8
    if low_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(missing_package("--low_bit_adam 8", "bitsandbytes", "low-bit"))


def _listed(names: "tuple[str, ...] | list[str]") -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
