"""Whether a device's kernels give the bits of the specification: the cases, and the comparison.

Each case computes its tensors with the fastest backend of the device and with the specification on the CPU.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from zotune import kernels
from zotune.noise import Key

Case = Callable[[torch.device, str | None], list[Tensor]]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = ((1,), (1000,), (4097,), (7, 1), (33, 65), (256, 1030), (3, 5, 130))
ROUNDING = Key(5, step=3, parameter=2, tag="rounding")


def _tensor(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.02).to(dtype).to(device)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _terms(count: int) -> list[tuple[float, Key]]:
    return [(1e-3 * (-0.7) ** k, Key(11, step=9, query=k, parameter=4)) for k in range(count)]


def _combine(shape: tuple[int, ...], dtype: torch.dtype, noise: kernels.Noise, count: int, how: str) -> Case:
    def case(device: torch.device, backend: str | None) -> list[Tensor]:
        w = _tensor(shape, 1, dtype, device)
        out, more = torch.empty_like(w), {}
        if how == "precision":
            more["precision"] = _tensor(shape, 2, _wide(dtype), device).abs() + 0.5
        if how == "dense":
            more["dense"] = (-0.3, _tensor(shape, 3, _wide(dtype), device))
        if how == "rounding":
            more["rounding"] = ROUNDING
        if how == "far":
            more["start"] = (1 << 33) + 17
        kernels.combine(out, w, decay=0.99, terms=_terms(count), noise=noise, backend=backend, **more)
        return [out]

    return case


def _rows(shape: tuple[int, int], dtype: torch.dtype, noise: kernels.Noise, count: int, how: str) -> Case:
    def case(device: torch.device, backend: str | None) -> list[Tensor]:
        w, wide = _tensor(shape, 1, dtype, device), _wide(dtype)
        out = torch.empty_like(w)
        a, u, vt = (_tensor(size, 4, wide, device) * 50 for size in ((shape[1],), (shape[0], 2), (2, shape[1])))
        if how == "low rank":
            kernels.combine_rows(out, w, low_rank=(u, vt), rounding=ROUNDING, backend=backend)
            return [out]
        kernels.combine_rows(out, w, terms=_terms(count), noise=noise, rank_one=(0.2, a), backend=backend)
        q, p = kernels.row_gram(_terms(count), a, shape[0], noise=noise, backend=backend)
        h = _tensor(shape, 5, wide, device).abs() + 0.5
        kernels.scale_by_squares(h, decay=0.9, terms=_terms(count), noise=noise, backend=backend)
        return [out, q, torch.tensor(p, dtype=torch.float64), h]

    return case


def cases() -> Iterator[tuple[str, Case]]:
    """All cases, by what they cover."""
    for dtype, shape, noise in itertools.product(DTYPES, SHAPES, kernels.NOISES):
        name = f"{dtype} {tuple(shape)} {noise}".removeprefix("torch.")
        for count, how in ((1, "plain"), (2, "plain"), (6, "rounding"), (1, "precision"), (1, "dense"), (2, "far")):
            yield f"{name} {count} {how}", _combine(shape, dtype, noise, count, how)
        if len(shape) == 2:
            for count, how in ((1, "rank one"), (6, "rank one"), (0, "low rank")):
                yield f"{name} {count} {how}", _rows(shape, dtype, noise, count, how)
        if len(shape) == 3:
            yield f"{name} 2 turned", _turned(shape, dtype, noise)


def _turned(shape: tuple[int, ...], dtype: torch.dtype, noise: kernels.Noise) -> Case:
    """Weights that are not contiguous."""

    def case(device: torch.device, backend: str | None) -> list[Tensor]:
        w = _tensor(shape, 1, dtype, device).permute(2, 0, 1)
        kernels.combine(w, w, terms=_terms(2), noise=noise, backend=backend)
        return [w]

    return case


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.cpu().contiguous().view(whole), b.cpu().contiguous().view(whole))


def differing(
    chosen: Mapping[str, Case], device: torch.device, out_of_time: Callable[[], bool]
) -> tuple[int, list[str]]:
    """(number of cases that were compared, names of those that differ)."""
    done, wrong = 0, []
    for name, case in chosen.items():
        if out_of_time():
            break
        mine, specified = case(device, None), case(torch.device("cpu"), "reference")
        done += 1
        if not all(same(x, y) for x, y in zip(mine, specified, strict=True)):
            wrong.append(name)
    return done, wrong
