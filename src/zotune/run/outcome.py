"""What is said at the end of a run: what it reached, and, where it hardly learnt anything, that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from zotune.config import SHARES, TrainConfig

_FALL: Final = 0.02
"""Share of a loss by which a lower one is below it for certain enough; less is within what other rows would change."""

Evaluation = Mapping[str, Any]


def outcome(
    summary: Mapping[str, Any],
    facts: Mapping[str, Any],
    config: TrainConfig,
    *,
    in_words: str | None = None,
    smooth: bool = True,
    counted: bool = False,
) -> list[str]:
    """Sentences about a run that was evaluated before and after; none where it was not.

    Args:
        summary: content of summary.json.
        facts: of config.json: numbers of rows, and the shares of the classes where classes are predicted.
        config: its settings.
        in_words: the flag by which the model would answer in words, where it has learnt a new head.
        smooth: the loss has a gradient, so that first-order methods can train with it.
        counted: it is 1 minus the accuracy, and says no more than that.
    """
    first, final, best = summary.get("first"), summary.get("final"), summary.get("best")
    if not first or not final or first["step"] == final["step"]:
        return []
    loss, accuracy = (f"{name} {_number(first, name)} before, {_number(final, name)} after" for name in _SHOWN)
    cost = f"{final['queries']:,} queries" if config.zeroth_order else f"{final['step']:,} steps"
    cost += f" of {config.batchsize} examples"
    said = [f"validation {loss}; {accuracy} {cost}"]
    if best is not None:
        place = "before the first step" if best["step"] == 0 else f"after step {best['step']}"
        said[0] += f" (best {best['accuracy']:.4f}, {place})"
    if final["loss"] is not None and not learnt(first, final, facts, counted=counted):  # of a nan more is said
        said.append(_rose(first, final, best) or _advice(first, final, facts, config, in_words, smooth=smooth))
    return said


_SHOWN: Final = ("loss", "accuracy")


def learnt(first: Evaluation, final: Evaluation, facts: Mapping[str, Any], *, counted: bool = False) -> bool:
    """Whether the last evaluation is better than the first, and than predicting how frequent the classes are.

    By its loss, unless that is ``counted``, which has to be 2 % lower than both, or by its accuracy, which has to be
    higher than both by two standard errors; a model may be right more often while the few rows it is wrong about cost
    more.
    """
    shares = facts.get(SHARES) or {}
    losses = [first["loss"], shares.get("loss")]
    bar = min((loss for loss in losses if loss is not None), default=math.inf)
    if not counted and final["loss"] is not None and final["loss"] < bar - _FALL * abs(bar):
        return True
    rows, was = facts.get("validation_examples"), max(_known(first["accuracy"]), _known(shares.get("accuracy")))
    if not rows or final["accuracy"] is None:
        return False
    error = math.sqrt(max(was * (1 - was), 1 / rows) / rows)
    return bool(final["accuracy"] > was + 2 * error)


def _rose(first: Evaluation, final: Evaluation, best: Evaluation | None) -> str | None:
    """Of a run that had learnt something and lost it; None of others."""
    if best is None or first["loss"] is None or best["loss"] is None or best["step"] in (0, final["step"]):
        return None
    if final["loss"] <= first["loss"] or best["loss"] > first["loss"] * (1 - _FALL):
        return None
    return (
        f"The validation loss was {best['loss']:.4f} after step {best['step']} and rose from there. What may help: a"
        " lower --lr, fewer steps, --early_stopping or more examples (--samplesize); with --save_ckpt, best/ is the"
        " model of that step."
    )


def _advice(
    first: Evaluation,
    final: Evaluation,
    facts: Mapping[str, Any],
    config: TrainConfig,
    in_words: str | None,
    *,
    smooth: bool,
) -> str:
    shares = (facts.get(SHARES) or {}).get("loss")
    if first["loss"] is not None and final["loss"] > first["loss"]:
        found = "The validation loss did not fall"
    elif shares is not None and final["loss"] > shares * (1 + _FALL):
        found = f"The validation loss is still above the {shares:.4f} of knowing only how frequent the classes are"
    elif shares is not None and final["loss"] > shares * (1 - _FALL):
        found = f"Hardly more was learnt than how frequent the classes are, which gives a loss of {shares:.4f}"
    else:
        found = "The validation loss hardly fell"
    ways = [] if in_words is None else [f"answers in words in place of a new head ({in_words})"]
    ways.append("more steps (a larger --patience)" if config.early_stopping else "more steps (--epochs)")
    ways += ["more examples (--samplesize)", "another rate (zotune sweep)"]
    told = f"{found}. What may help: {', '.join(ways[:-1])} or {ways[-1]}"
    if config.zeroth_order and smooth:
        told += "; AdamW (--algorithm FOAdam), where its memory fits, soon tells whether there is anything to learn"
    return told + "."


def _known(value: float | None) -> float:
    return 0.0 if value is None else value


def _number(evaluation: Evaluation, name: str) -> str:
    return "nan" if evaluation.get(name) is None else f"{evaluation[name]:.4f}"
