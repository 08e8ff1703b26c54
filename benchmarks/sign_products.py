"""Dense directions that can share one forward, z_k = Z o (r_k s_k^T): convergence per query, and time of a layer.

Z is one dense draw per step, r_k and s_k are fresh signs of each query, so that `x z_k^T = r_k o ((x o s_k) Z^T)` and
all queries go through one product with W and one with Z.  Compared with independent dense directions:

- convergence on the task of `make demo` at the same number of queries, for leave-one-out losses and for two-point
  pairs: the best learning rate of a small grid (chosen on other trials than those reported), and the results at its
  two better rates;
- process CPU time of one linear layer, queries in one forward against queries one by one with written-out weights.

    python benchmarks/sign_products.py [--only cost|convergence]

Vectors keep independent noise, which costs next to nothing.  Results go to benchmarks/results/sign_products.json.
"""

import dataclasses
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import arguments, head, parse
from loren_momentum import TUNING, spread
from rich.console import Console
from torch import Tensor

from zotune import kernels
from zotune.bench.clock import take_turns
from zotune.config import TrainConfig
from zotune.hf.trainer import OptimizerFactory
from zotune.noise import Key, Noise, normal, rademacher
from zotune.perturbations import Dense, Part, Perturbation, Slot, Terms
from zotune.run.training import TrainingRun

_SHARED = (1 << 24) - 1  # number of a query that no plan has: Z is its noise


class SignProducts(Perturbation):
    """D_k = Z o (r_k s_k^T), written out; for float32 weights."""

    matrix = True

    def combine(
        self,
        slot: Slot,
        out: Tensor,
        w: Tensor | None,
        terms: Terms,
        *,
        decay: float = 1.0,
        rounding: Key | None = None,  # noqa: ARG002 (float32 is not rounded)
        part: Part | None = None,
    ) -> None:
        """See `Perturbation.combine`: out = w * decay + Z o (sum_k c_k r_k s_k^T)."""
        assert out.dtype is torch.float32
        values = torch.zeros_like(out) if w is None else w * decay
        if terms:
            rows, columns = slot.shape
            draws = torch.stack([rademacher(key.at(tag="V"), (rows + columns,)) for _, key in terms])
            left = draws[:, :rows].t() * torch.tensor([c for c, _ in terms])
            z = self._shared(slot, terms[0][1])
            if part is not None:
                left, z = part.take(left), part.take(z)
            values = values + (left @ draws[:, rows:]) * z
        out.copy_(values)

    def _shared(self, slot: Slot, key: Key) -> Tensor:
        """Z of the key's step."""
        if slot.memo.get("step") != key.step:
            draw = normal if self.noise == "gaussian" else rademacher
            slot.memo.update(step=key.step, Z=draw(key.at(query=_SHARED), slot.shape))
        z: Tensor = slot.memo["Z"]
        return z


# ------------------------------------------------------------------------------------------------ convergence

RATES = (3e-4, 1e-3, 3e-3)
COMPARED = RATES[1:]
"""Two tuning trials cannot tell these apart, so all settings are compared at both."""
TRIALS = 6
QUERIES = 6  # K


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """An estimator, and directions for it."""

    algorithm: str
    directions: type[Perturbation]
    noise: Noise

    @property
    def name(self) -> str:
        estimator = "leave-one-out" if self.algorithm == "LOREN" else "pairs"
        return f"{estimator}, {'signs' if self.directions is SignProducts else 'independent'}, {self.noise}"

    def config(self, quick: bool) -> TrainConfig:
        """160 steps of K queries, or 80 steps of K pairs: 960 queries."""
        pairs = self.algorithm == "ZO"
        epochs = 0.25 if quick else 2.5 if pairs else 5.0
        own: dict[str, Any] = {"num_queries": 2 * QUERIES} if pairs else {"num_queries": QUERIES, "lr_cov": 0.0}
        if quick:
            own |= {"samplesize": 64, "samplesize_validation": 32}
        return TrainConfig(
            algorithm=self.algorithm,
            full_parameter=True,
            epochs=epochs,
            eval_every=epochs,
            noise=self.noise,
            **own,
        )


SETTINGS = (
    Setting(algorithm="LOREN", directions=Dense, noise="gaussian"),
    Setting(algorithm="LOREN", directions=SignProducts, noise="gaussian"),
    Setting(algorithm="LOREN", directions=Dense, noise="rademacher"),
    Setting(algorithm="LOREN", directions=SignProducts, noise="rademacher"),
    Setting(algorithm="ZO", directions=Dense, noise="gaussian"),
    Setting(algorithm="ZO", directions=SignProducts, noise="gaussian"),
)


class _Run(TrainingRun):
    """A run whose matrices have other directions: LOREN's estimator with `Dense` is RLOO-MeZO."""

    directions: Perturbation

    def _optimizer_factory(self, rows: int) -> OptimizerFactory:
        build = super()._optimizer_factory(rows)

        def changed(groups: Any) -> Any:
            optimizer: Any = build(groups)
            optimizer._matrix = self.directions
            return optimizer

        return changed


def outcome(setting: Setting, *, lr: float, trial: int, quick: bool) -> dict[str, float]:
    """Final validation loss and accuracy, and queries, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(setting.config(quick), lr=lr, trial=trial, results=Path(folder))
        run = _Run(config, Console(file=io.StringIO()))
        run.directions = setting.directions(setting.noise)
        final = json.loads((run.execute() / "summary.json").read_text())["final"]
    return {key: final[key] for key in ("loss", "accuracy", "queries")}


def converge(setting: Setting, *, quick: bool) -> dict[str, Any]:
    rates, compared, count = (RATES[1:2], RATES[1:2], 2) if quick else (RATES, COMPARED, TRIALS)
    tuning = TUNING[:1] if quick else TUNING
    tuned = {rate: [outcome(setting, lr=rate, trial=t, quick=quick) for t in tuning] for rate in rates}
    means = {rate: statistics.mean(run["loss"] for run in runs) for rate, runs in tuned.items()}
    trials = range(len(TUNING), len(TUNING) + count)
    runs = {rate: [outcome(setting, lr=rate, trial=trial, quick=quick) for trial in trials] for rate in compared}
    return {
        "tuning_loss": {f"{rate:g}": round(loss, 4) for rate, loss in means.items()},
        "lr": min(means, key=lambda rate: means[rate]),
        "queries": runs[compared[0]][0]["queries"],
        "rates": {f"{rate:g}": {**spread("loss", own), **spread("accuracy", own)} for rate, own in runs.items()},
    }


# ------------------------------------------------------------------------------------------------ cost

EPS = 1e-3


def sides(rows: int, columns: int, tokens: int, queries: int) -> dict[str, Callable[[], object]]:
    """One forward of one query, and K queries in several ways; `columns` is the layer's input."""
    w, scratch = normal(Key(1), (rows, columns)) * 0.02, torch.empty(rows, columns)
    x = normal(Key(2), (queries, tokens, columns))
    keys = [Key(3, query=k) for k in range(queries)]

    def overlay(noise: Noise) -> None:
        for k, key in enumerate(keys):
            kernels.combine(scratch, w, terms=[(EPS, key)], noise=noise)
            torch.mm(x[k], scratch.t())

    def signs(noise: Noise) -> Tensor:
        kernels.combine(scratch, None, terms=[(1.0, Key(3, query=_SHARED))], noise=noise)
        draws = torch.stack([rademacher(key, (rows + columns,)) for key in keys])[:, None]
        out = torch.mm(x.flatten(0, 1), w.t()).view(queries, tokens, rows)
        image = torch.mm((x * draws[..., rows:]).flatten(0, 1), scratch.t()).view_as(out)
        return out.addcmul_(image, draws[..., :rows], value=EPS)

    def rank() -> None:
        v = normal(Key(4), (columns, 2))
        u = torch.stack([normal(key, (rows, 2)) for key in keys])
        out = torch.mm(x.flatten(0, 1), w.t()).view(queries, tokens, rows)
        out.baddbmm_(x @ v, u.transpose(1, 2), alpha=EPS)

    return {
        "forward": lambda: torch.mm(x[0], w.t()),
        "overlay, gaussian": lambda: overlay("gaussian"),
        "overlay, rademacher": lambda: overlay("rademacher"),
        "signs, gaussian": lambda: signs("gaussian"),
        "signs, rademacher": lambda: signs("rademacher"),
        "rank 2": rank,
    }


def time_layer(*, quick: bool, rounds: int) -> list[dict[str, Any]]:
    shape, counts = ((3072, 768), (16, 64, 512)) if not quick else ((32, 16), (4, 8))
    found = []
    for tokens in counts:
        for queries in (2, 6):
            timed = sides(*shape, tokens, queries)
            take_turns(timed, clock=time.process_time, rounds=2)  # compile, touch the memory
            samples = take_turns(timed, clock=time.process_time, rounds=rounds)
            seconds = {name: statistics.median(values) for name, values in samples.items()}
            found += [
                {
                    "tokens": tokens,
                    "queries": queries,
                    "way": name,
                    "ms": round(value * 1e3, 4),
                    # quick layers may be finished within a tick of the clock
                    "forwards_a_query": round(value / max(seconds["forward"], 1e-9) / queries, 3),
                }
                for name, value in seconds.items()
                if name != "forward"
            ]
            print(tokens, queries, {name: f"{1e3 * value:.2f} ms" for name, value in seconds.items()}, flush=True)
    return found


def main(words: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=("cost", "convergence"), help="one of the two parts; the other is kept")
    parser.add_argument("--rounds", type=int, default=15)
    options = parse(parser, words)
    torch.set_num_threads(1)
    path = options.results / "sign_products.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    report |= head("ms of process CPU time, one thread; losses are means over trials")
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.only != "convergence":
        report["layer"] = time_layer(quick=options.quick, rounds=options.rounds)
        path.write_text(json.dumps(report, indent=1) + "\n")
    if options.only != "cost":
        begin, settings = time.process_time(), {}
        for setting in SETTINGS[:2] if options.quick else SETTINGS:
            settings[setting.name] = converge(setting, quick=options.quick)
            print(setting.name, settings[setting.name], flush=True)
        seconds = round(time.process_time() - begin)
        report["convergence"] = {"trials": TRIALS, "cpu_seconds": seconds, "settings": settings}
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
