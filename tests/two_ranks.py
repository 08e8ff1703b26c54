"""One of two processes of test_distributed.py: ``python two_ranks.py RANK FOLDER`` writes FOLDER/RANK.json."""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from zotune import FZOO, LOREN, LOZO, DataParallel, HiZOO, MeZO, MeZOSVRG, NonFiniteLossError, ZOAdam, digest
from zotune.rates import suggest_rate

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "MeZO": (MeZO, {}),
    "MeZO momentum": (MeZO, {"momentum": 0.9, "queries": 4}),
    "ZOAdam": (ZOAdam, {}),
    "MeZOSVRG": (MeZOSVRG, {"period": 3}),
    "LOZO": (LOZO, {"period": 4}),
    "LOZO-M": (LOZO, {"period": 4, "momentum": 0.9}),
    "HiZOO": (HiZOO, {"smoothing": "constant1e-2"}),
    "LOREN": (LOREN, {}),
    "FZOO": (FZOO, {}),
}
COLLECTIVES = ("all_gather", "all_reduce", "broadcast", "reduce", "gather", "all_gather_object", "barrier")
SHARES = (slice(0, 5), slice(5, 8))


def model_of() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype).mul(0.5)
    return model


def batch(step: int) -> torch.Tensor:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x * torch.arange(1, 9)[:, None]  # unequal examples, so that a wrong weighting shows


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def count_collectives() -> collections.Counter[str]:
    """Counts calls of torch.distributed's functions from now on."""
    counter: collections.Counter[str] = collections.Counter()

    def counted(name: str) -> None:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counter[name] += 1
            return real(*args, **kwargs)

        setattr(dist, name, call)

    for name in COLLECTIVES:
        counted(name)
    return counter


def one_method(method: str, rank: int, counter: collections.Counter[str]) -> dict[str, Any]:
    cls, options = METHODS[method]
    model, alone = model_of(), model_of()
    shared = cls(model.named_parameters(), lr=1e-2, evaluator=DataParallel(), **options)
    single = cls(alone.named_parameters(), lr=1e-2, **options)
    digests, losses, losses_alone = [], [], []
    counter.clear()
    for step in range(10):
        part = batch(step)[SHARES[rank]]
        shared.estimate(lambda part=part: loss(model, part), weight=len(part))
        shared.step()
        single.step(lambda step=step: loss(alone, batch(step)))
        digests.append(digest(model.parameters()))
        losses.append(shared.last_loss)
        losses_alone.append(single.last_loss)
    pairs = list(zip(model.parameters(), alone.parameters(), model_of().parameters(), strict=True))
    return {
        "digests": digests,
        "losses": losses,
        "losses_alone": losses_alone,
        "deviation": max(float((p - q).abs().max()) for p, q, _ in pairs),
        "moved": max(float((p - start).abs().max()) for p, _, start in pairs),
        "collectives": dict(counter),
        "queries": shared.queries,
        "queries_alone": single.queries,
    }


def micro_batches(rank: int, counter: collections.Counter[str]) -> dict[str, Any]:
    model, alone = model_of(), model_of()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, evaluator=DataParallel())
    counter.clear()
    for part in ([slice(0, 2), slice(2, 5)], [slice(5, 8)])[rank]:
        rows = batch(0)[part]
        optimizer.estimate(lambda rows=rows: loss(model, rows), weight=len(rows))
    optimizer.step()
    wanted = MeZO(alone.named_parameters(), lr=1e-2).step(lambda: loss(alone, batch(0)))
    gathers = counter["all_gather"]
    return {
        "digest": digest(model.parameters()),
        "gathers": gathers,
        "loss": optimizer.last_loss,
        "loss_alone": wanted,
    }


def empty_share(rank: int) -> dict[str, Any]:
    model, alone = model_of(), model_of()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, evaluator=DataParallel())
    rows = batch(0)[: 8 if rank == 0 else 0]
    optimizer.estimate(lambda: loss(model, rows), weight=len(rows))
    optimizer.step()
    wanted = MeZO(alone.named_parameters(), lr=1e-2).step(lambda: loss(alone, batch(0)))
    report = {"digest": digest(model.parameters()), "loss": optimizer.last_loss, "loss_alone": wanted}
    optimizer.estimate(lambda: loss(model, rows[:0]), weight=0)
    try:
        optimizer.step()
        report["nobody"] = ""
    except ValueError as error:
        report["nobody"] = str(error)
    return report


def not_finite(rank: int) -> dict[str, Any]:
    model = model_of()
    optimizer = LOREN(model.named_parameters(), lr=1e-2, evaluator=DataParallel())
    optimizer.step(lambda: loss(model, batch(0)))
    before, report = digest(model.parameters()), {}
    try:
        optimizer.step(lambda: loss(model, batch(1)) * (float("nan") if rank == 1 else 1.0))
    except NonFiniteLossError as error:
        report = {"step": error.step, "message": str(error)}
    report["kept"] = digest(model.parameters()) == before and optimizer.t == 1
    optimizer.step(lambda: loss(model, batch(2)))
    report["digest_after"] = digest(model.parameters())
    return report


def measured(rank: int) -> dict[str, Any]:
    """The rate on halves of the batches, on whole ones, and where one rank's loss is NaN."""
    share = (slice(0, 4), slice(4, 8))[rank]

    def rate(rows: slice, evaluator: Any = None, factor: float = 1.0) -> Any:
        model = model_of()
        optimizer = MeZO(model.named_parameters(), lr=0.0, evaluator=evaluator)
        batches = [batch(step)[rows] for step in range(12)]
        closures = [(lambda x=x: loss(model, x) * factor) for x in batches]
        return suggest_rate(optimizer, closures, steps=100)

    shared, alone = rate(share, DataParallel()), rate(slice(0, 8))
    report = {"shared": dataclasses.asdict(shared), "alone": dataclasses.asdict(alone), "message": ""}
    try:
        rate(share, DataParallel(), float("nan") if rank == 1 else 1.0)
    except NonFiniteLossError as error:
        report["message"] = str(error)
    return report


def threads() -> list[str]:
    """Names of the process's threads; none where the system does not show them."""
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    counter = count_collectives()
    report = {
        "methods": {method: one_method(method, rank, counter) for method in METHODS},
        "micro": micro_batches(rank, counter),
        "empty": empty_share(rank),
        "nan": not_finite(rank),
        "rate": measured(rank),
    }
    dist.destroy_process_group()
    report["threads"] = threads()
    (folder / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
