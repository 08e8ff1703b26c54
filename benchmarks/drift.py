"""Half precision: what null steps do to the weights, and how much of a small update arrives.

Drift: 1,000 steps with learning rate 0, the textbook way (+ eps z, - 2 eps z, + eps z, in place) and zotune; the root
mean square of the change over that of the weights, and the share of weights whose bits changed.  Weights are
N(0, 0.02^2).

Kept: one update of size c, written as p <- p - c z with z = +-1; the share that arrives is the change along the
intended one, sum(change * intended) / sum(intended^2): 1 when all of it arrives on average.  Rounded to nearest, as
`p.data = p.data - c * z` does, and rounded stochastically, as zotune does.

    python benchmarks/drift.py [--steps N] [--weights N]
"""

import torch
from common import arguments, head, parse, save
from eager import MeZO as Textbook
from torch import nn

import zotune
from zotune import kernels
from zotune.noise import Key

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UPDATES = (1e-5, 1e-6)
KEPT = 0.99
"""Target: the least share of an update of 1e-6 that arrives in bfloat16; of the drift it is no bit at all."""


def layer(rows: int, columns: int, dtype: torch.dtype) -> nn.Linear:
    made = nn.Linear(columns, rows, bias=False)
    generator = torch.Generator().manual_seed(0)
    made.weight.data = (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)
    return made


def drift(dtype: torch.dtype, way: str, steps: int, rows: int, columns: int) -> tuple[float, float]:
    """(change over weights, root mean squares; share of weights whose bits changed) after the steps."""
    made = layer(rows, columns, dtype)
    x = torch.ones(1, columns, dtype=dtype)
    before = made.weight.data.clone()
    if way == "textbook":
        eager = Textbook([made.weight], lr=0.0)
        for _ in range(steps):
            eager.step(lambda: made(x).float().mean())
    else:
        optimizer = zotune.MeZO(made.named_parameters(), lr=0.0)
        for _ in range(steps):
            optimizer.step(lambda: made(x).float().mean())
    after = made.weight.data
    changed = (after != before).float().mean().item()
    change, size = (after.double() - before.double()).square().mean(), before.double().square().mean()
    return float((change / size).sqrt()), changed


def kept(dtype: torch.dtype, size: float, way: str, weights: int) -> float:
    """Share of an update that arrives."""
    w = layer(1, weights, dtype).weight.data
    z = torch.empty_like(w, dtype=torch.float32)
    kernels.combine(z, None, terms=[(1.0, Key(1))], noise="rademacher")
    if way == "to nearest":
        new = w - (size * z).to(dtype)
    else:
        new = w.clone()
        kernels.combine(
            new, new, terms=[(-size, Key(1))], noise="rademacher", rounding=Key(1, tag="rounding")
        )  # what an update calls
    change, intended = new.double() - w.double(), -size * z.double()
    return float((change * intended).sum() / (intended * intended).sum())


def main(words: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--weights", type=int, default=1 << 24, help="of the measurement of updates")
    options = parse(parser, words)
    torch.set_num_threads(1)
    if options.quick:
        options.steps, options.weights = 20, 1 << 18
    rows = []
    for name, dtype in DTYPES.items():
        for way in ("textbook", "zotune"):
            relative, changed = drift(dtype, way, options.steps, 64, 256)
            rows.append({"what": "drift", "dtype": name, "way": way, "steps": options.steps, "share_changed": changed})
            rows[-1]["value"] = relative
            if way == "zotune":
                rows[-1] |= {"target": 0.0, "verdict": "met" if changed == 0.0 else "missed"}
            print(f"{name:9} drift, {way:17} {relative:.3g} of the weights, {changed:.3g} of them changed")
        for size in UPDATES:
            for way in ("to nearest", "stochastic"):
                share = kept(dtype, size, way, options.weights)
                rows.append({"what": f"kept of {size:g}", "dtype": name, "way": way, "value": share})
                if (name, way, size) == ("bfloat16", "stochastic", 1e-6):
                    rows[-1] |= {"target": KEPT, "verdict": "met" if share >= KEPT else "missed"}
                print(f"{name:9} {rows[-1]['what']}, {way:12} {share:.4f}")
    save("drift", head("shares; see benchmarks/drift.py"), rows, ("what", "dtype", "way"), options.results)


if __name__ == "__main__":
    main()
