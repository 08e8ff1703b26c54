"""The last score of a run that chooses its model by training rows: on others, by which nothing was chosen, with the
weights that were chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from zotune.hf.trainer import ZOTrainer
from zotune.run.keepers import best_evaluation
from zotune.run.parts import Parts

_TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")


def score_test(trainer: ZOTrainer, parts: Parts, best: Path) -> dict[str, Any]:
    """Metrics of the test rows: of the model in the folder ``best`` where the run has kept one, or else of the last.

    Called on every process.  Afterwards the model has the weights that were scored.
    """
    assert parts.test is not None
    trainer.accelerator.wait_for_everyone()  # one of them may still be writing it
    chosen = best.is_dir()
    if chosen:
        trainer.load_weights(best)
    if parts.test_metrics is not None:
        trainer.compute_metrics = parts.test_metrics
    found = trainer.predict(parts.test).metrics or {}
    named = {name.removeprefix("test_"): value for name, value in found.items()}
    return {
        "weights": "best" if chosen else "last",
        "step": (best_evaluation(best) or {}).get("step") if chosen else trainer.state.global_step,
        "examples": len(parts.test),
        # JSON has neither nan nor infinity.
        **{name: value if math.isfinite(value) else None for name, value in named.items() if name not in _TIMINGS},
    }
