"""Losses of every method on the embedded model (CPU, float32), step by step, as they were when last written down.

They are changed only by a commit that says why.  `python tests/test_golden.py` writes them anew, those of
test_equivalences.py too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import test_equivalences
import torch

from zotune import FZOO, LOREN, LOZO, HiZOO, MeZO, MeZOSVRG, ZOAdam
from zotune.embedded import MODEL_DIR, generate
from zotune.hf.groups import parameter_groups
from zotune.hf.models import load_classifier, load_tokenizer
from zotune.optimizer import ZerothOrder
from zotune.tasks import get_task

GOLDEN = Path(__file__).parent / "golden" / "embedded.json"
STEPS, BATCH = 20, 8
METHODS: dict[str, tuple[type[ZerothOrder], dict[str, Any]]] = {
    "MeZO": (MeZO, {"lr": 1e-3}),
    "MeZO, rademacher, momentum": (MeZO, {"lr": 3e-4, "noise": "rademacher", "momentum": 0.9}),
    "ZOAdam": (ZOAdam, {"lr": 1e-3}),
    "MeZOSVRG": (MeZOSVRG, {"lr": 1e-3, "lr_minibatch": 3e-4, "period": 3}),
    "LOZO": (LOZO, {"lr": 1e-3, "period": 5}),
    "LOZO-M": (LOZO, {"lr": 3e-4, "period": 5, "momentum": 0.9}),
    "HiZOO": (HiZOO, {"lr": 1e-3, "smoothing": "constant1e-2"}),
    "LOREN": (LOREN, {"lr": 1e-3, "queries": 4}),
    "LOREN, momentum, rank": (LOREN, {"lr": 3e-4, "queries": 4, "momentum": 0.9, "rank": 4}),
    "FZOO": (FZOO, {"lr": 2e-5, "queries": 4}),
}


def losses_of(name: str) -> list[float]:
    """Mean losses of the steps on generated reviews, one batch after the other."""
    tokenizer, task = load_tokenizer(str(MODEL_DIR)), get_task("sst2")
    model = load_classifier(str(MODEL_DIR), task, tokenizer=tokenizer, seed=1)
    rows = generate("sst2", "train", STEPS * BATCH, 0)
    kind, options = METHODS[name]
    optimizer = kind(parameter_groups(model, weight_decay=0.0), seed=11, **options)
    losses = []
    for step in range(STEPS):
        part = rows[step * BATCH : (step + 1) * BATCH]
        batch = tokenizer([str(row["sentence"]) for row in part], padding=True, return_tensors="pt")
        labels = torch.tensor([int(row["label"]) for row in part])

        def loss(batch: Any = batch, labels: torch.Tensor = labels) -> torch.Tensor:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return torch.nn.functional.cross_entropy(logits.double(), labels)

        optimizer.estimate(loss)
        mean = optimizer.step()
        assert mean is not None
        losses.append(mean)
    return losses


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_written_down(name: str) -> None:
    """1e-3: what another matrix library's rounding does to twenty steps; a wrong rate, sign or draw does far more."""
    golden = json.loads(GOLDEN.read_text())
    assert losses_of(name) == pytest.approx(golden[name], rel=1e-3)


def test_every_method_is_there_and_none_is_another() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert list(golden) == list(METHODS)
    assert all(len(losses) == STEPS for losses in golden.values())
    for one in golden:
        for other in golden:
            if one < other:  # an error of the size of the difference between any two methods would be noticed
                pairs = zip(golden[one], golden[other], strict=True)
                assert max(abs(a - b) / abs(b) for a, b in pairs) > 5e-3, (one, other)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses_of(name) for name in METHODS}, indent=1) + "\n")
    test_equivalences.write_down()
    sys.exit()
