"""MeZO-SVRG's anchor, recomputed from the weights or copied: how well it serves as a control variate in each dtype.

The embedded model is trained for a period of q steps.  Before the next snapshot, coefficients
c_B(P) = (f_B(P + eps z) - f_B(P - eps z)) / (2 eps) are taken for fresh directions z and all batches B of a pool F, at
the weights W, at the copied anchor X and at the recomputed one X'.  Reported for A = X and A = X':

- correlation of c_B(W) and c_B(A) over batches and directions;
- error: mean square of [c_B(W) - c_B(A) + c_F(X)] - c_F(W), divided by that of c_B(W) - c_F(W), the plain estimate.

    python benchmarks/svrg_anchor.py
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding

import zotune
from zotune.config import TrainConfig
from zotune.estimators import Probe
from zotune.run.parts import Parts, load_parts

RESULTS = Path(__file__).parent / "results" / "svrg_anchor.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PERIODS = (2, 10, 30)
BATCHES, BATCH, DIRECTIONS = 8, 16, 16
RATE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    model: torch.nn.Module
    batches: Sequence[Any]

    def loss(self, batch: Any) -> Callable[[], Tensor]:
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return lambda: torch.nn.functional.cross_entropy(self.model(**inputs).logits.float(), labels)

    def full(self) -> Callable[[], float]:
        closures = [self.loss(batch) for batch in self.batches]
        return lambda: sum(float(closure()) for closure in closures) / len(closures)


def problem(dtype: torch.dtype) -> Problem:
    config = TrainConfig(samplesize=BATCHES * BATCH, full_parameter=True).resolved()
    parts: Parts = load_parts(config, dtype=dtype, device=torch.device("cpu"), row_seed=1, head_seed=2)
    rows = [parts.train[i] for i in range(len(parts.train))]
    collate = DataCollatorWithPadding(parts.tokenizer)
    batches = [collate(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    parts.model.eval()
    return Problem(model=parts.model, batches=batches)


def coefficients(optimizer: zotune.MeZOSVRG, at: Problem, point: int) -> np.ndarray:
    """c_B of all directions and batches, shape (DIRECTIONS, BATCHES)."""
    slots = optimizer._active()
    # queries that no step of this run asks for: fresh directions
    plan = [Probe(1000 + k, sign, point) for k in range(DIRECTIONS) for sign in (1, -1)]
    columns = []
    for batch in at.batches:
        losses = optimizer.evaluator.evaluate(slots, plan, optimizer._write_probe, at.loss(batch), optimizer.t)
        columns.append((np.array(losses[0::2]) - np.array(losses[1::2])) / (2 * optimizer.defaults["eps"]))
    return np.stack(columns, axis=1)


def compare(dtype: torch.dtype, period: int) -> dict[str, Any]:
    at = problem(dtype)
    named = [(name, p) for name, p in at.model.named_parameters() if p.requires_grad]
    optimizer = zotune.MeZOSVRG(named, lr=RATE, period=period, anchor="recompute", seed=5)
    copies: dict[torch.nn.Parameter, Tensor] = {}
    with torch.no_grad():
        for step in range(2 * period):
            if optimizer.needs_full:
                copies = {p: p.detach().clone() for _, p in named}
            optimizer.step(at.loss(at.batches[step % BATCHES]), at.full())
            if step == 2 * period - 2:
                break  # the next step is the last with this anchor
        weights = coefficients(optimizer, at, 0)
        anchors = {"recompute": coefficients(optimizer, at, 1)}
        for p, copy in copies.items():
            optimizer.state[p]["anchor"] = copy
        anchors["copy"] = coefficients(optimizer, at, 1)
        moved = sum(float((p.float() - copies[p].float()).square().sum()) for _, p in named) ** 0.5
    plain, true = weights - weights.mean(1, keepdims=True), anchors["copy"].mean(1, keepdims=True)
    rows = {
        name: {
            "correlation": round(float(np.corrcoef(weights.ravel(), c.ravel())[0, 1]), 5),
            "error": round(float(np.mean((plain - c + true) ** 2) / np.mean(plain**2)), 5),
        }
        for name, c in anchors.items()
    }
    return {"distance": round(moved, 5), **rows}


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        for period in PERIODS:
            report[f"{name}, period {period}"] = compare(dtype, period)
            print(name, period, report[f"{name}, period {period}"], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
