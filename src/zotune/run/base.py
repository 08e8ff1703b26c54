"""The model before its first step: what a trajectory writes down about it, and how it is built from that again.

`load_parts` builds the model of a run with `base_model`, `about_of` writes what that took, `facts_of` reads it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import zotune
from zotune.config import LARGEST_ADAPTER, ConfigError, TrainConfig, shortened
from zotune.hf.adapters import KINDS, Adapter, add_adapter
from zotune.hf.models import load_classifier, load_language_model
from zotune.tasks import Task, get_task
from zotune.tasks.own import OwnData
from zotune.trajectory import TrajectoryError

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FROZEN: Final = "frozen_digest"
"""Key of the digest of the parameters that are not trained; None where all are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """Of the settings of a run, those that its model depends on before the first step.

    Attributes:
        model_name: 'embedded', a folder or a name on the hub.
        task: which gives the labels of the head, or the label words.
        head_seed: of the weights that the model's files do not hold, and of an adapter's first values.
        dtype: of all weights, a key of `DTYPES`.
        full_parameter: all parameters are trained.
        prompted: label words in place of a new head.
        question: options or answers of a causal language model; also in place of a new head.
        adapter: what is trained in place of the model's own weights.
        own_words: of classes or label words of one's own data: the template, then the options; empty otherwise.
    """

    model_name: str
    task: str
    head_seed: int
    dtype: str
    full_parameter: bool
    prompted: bool
    question: bool = False
    adapter: Adapter | None = None
    own_words: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: TrainConfig, *, dtype: torch.dtype, head_seed: int, question: bool = False) -> Self:
        """The facts of a run."""
        own = None if question else config.own
        return cls(
            model_name=config.model_name,
            task=config.task,
            head_seed=head_seed,
            dtype=str(dtype).removeprefix("torch."),
            full_parameter=config.full_parameter,
            prompted=config.soft_prompt,
            question=question,
            adapter=config.adapter,
            own_words=(own.template, *own.options) if own and own.template else (),
        )

    def chosen_task(self) -> Task:
        """The task of labels or label words.

        Raises:
            ValueError: there is none of that name.
        """
        if not self.own_words:
            return get_task(self.task)
        template, *options = self.own_words
        return OwnData(train="", template=template, options=tuple(options), in_words=self.prompted).task()


def about_of(
    config: TrainConfig, model: PreTrainedModel, *, dtype: torch.dtype, head_seed: int, question: bool = False
) -> dict[str, Any]:
    """What the header of a run's trajectory says in `about`, for a model that has made no step yet."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        **dataclasses.asdict(BaseFacts.of(config, dtype=dtype, head_seed=head_seed, question=question)),
        "algorithm": config.algorithm,
        "max_seq_length": config.max_seq_length,
        "revision": getattr(model.config, "_commit_hash", None),
        FROZEN: frozen_digest(p for p in model.parameters() if not p.requires_grad),
        "versions": versions,
    }


def facts_of(about: Mapping[str, Any]) -> BaseFacts | None:
    """What `about_of` has written; None where somebody else began the file and knows the model better.

    Raises:
        TrajectoryError: a fact is of a wrong kind.
    """
    kinds = {"model_name": str, "task": str, "head_seed": int, "dtype": str, "full_parameter": bool, "prompted": bool}
    if not kinds.keys() <= about.keys():
        return None
    for name, kind in kinds.items():
        if type(about[name]) is not kind:
            raise TrajectoryError(f"its header says {name}={shortened(repr(about[name]))}, which no run does")
    question = about.get("question", False)  # which files of version 0.1.0 before questions do not say
    if type(question) is not bool:
        raise TrajectoryError(f"its header says question={shortened(repr(question))}, which no run does")
    if about["dtype"] not in DTYPES or about["head_seed"] < 0:
        raise TrajectoryError("its header has a dtype or a seed of the head that no run has")
    words = about.get("own_words", [])  # which older files do not say
    if not isinstance(words, (list, tuple)) or len(words) == 1 or not all(isinstance(word, str) for word in words):
        raise TrajectoryError(f"its header says own_words={shortened(repr(words))}, which no run does")
    known = {name: about[name] for name in kinds}
    return BaseFacts(**known, question=question, adapter=_adapter_of(about), own_words=tuple(words))


def _adapter_of(about: Mapping[str, Any]) -> Adapter | None:
    told = about.get("adapter")
    if told is None:
        return None
    kinds: dict[str, Any] = {"kind": str, "rank": int, "alpha": int, "tokens": int, "settings": (dict, type(None))}
    known = isinstance(told, dict) and told.keys() == kinds.keys()
    if not known or not all(isinstance(told[name], kind) for name, kind in kinds.items()):
        raise TrajectoryError(f"its header says adapter={shortened(repr(told))}, which no run does")
    small = all(1 <= told[name] <= LARGEST_ADAPTER for name in ("rank", "alpha", "tokens"))
    if told["kind"] not in (*KINDS, "file") or not small or (told["kind"] == "file") != (told["settings"] is not None):
        raise TrajectoryError(f"its header says adapter={shortened(repr(told))}, which no run does")
    return Adapter(**told)


def base_model(
    facts: BaseFacts,
    *,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> PreTrainedModel:
    """The model, in evaluation mode, with `requires_grad` set.

    Args:
        facts: see `BaseFacts`.
        tokenizer: of the model.
        device: where the weights go.
        trust_remote_code: run code that comes with the model; a file never decides that.
        name: where the model is now, if not at ``facts.model_name``.

    Raises:
        ValueError: see `zotune.hf.models.load_classifier`; or there is no such task.
    """
    name = facts.model_name if name is None else name
    shared: dict[str, Any] = {
        "tokenizer": tokenizer,
        "dtype": DTYPES[facts.dtype],
        "device": device,
        "full_parameter": facts.full_parameter or facts.adapter is not None,
        "adapted": facts.adapter is not None,
        "trust_remote_code": trust_remote_code,
    }
    if facts.question:
        model = load_language_model(name, **shared)
    else:
        task = facts.chosen_task()
        model = load_classifier(name, task, seed=facts.head_seed, prompted=facts.prompted, **shared)
    if facts.adapter is None:
        return model
    return add_adapter(model, facts.adapter, tokenizer=tokenizer, seed=facts.head_seed, name=name)


def check_frozen(model: torch.nn.Module, about: Mapping[str, Any], name: str) -> None:
    """Compare the parameters that are not trained with those of the run whose header says `about`.

    Raises:
        ConfigError: they are others.
    """
    if not frozen_fits((p for p in model.parameters() if not p.requires_grad), about):
        raise ConfigError(
            f"The weights of {name} that are not trained are not those that the run began with; go on with the same"
            " model, bit for bit."
        )


def frozen_fits(frozen: Iterable[torch.nn.Parameter], about: Mapping[str, Any]) -> bool:
    """Whether parameters have the digest that a header's `about` says; so they have where it says none."""
    recorded = about.get(FROZEN)
    return not isinstance(recorded, int) or isinstance(recorded, bool) or frozen_digest(frozen) == recorded


def frozen_digest(frozen: Iterable[torch.nn.Parameter]) -> int | None:
    """`zotune.digest` of the parameters that are not trained, None if there are none."""
    parameters = list(frozen)
    return zotune.digest(parameters) if parameters else None
