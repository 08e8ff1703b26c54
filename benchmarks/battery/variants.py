"""Variants of the compiled noise, made by changing lines of the kernels' own file: fewer rounds, and deliberate faults.

The faults prove that the battery can fail; the rounds show its margin.  A variant is a changed copy of
``cpu_noise.py`` (and of ``cpu.py`` on top of it, for timing) under ``build/``, which keeps its own compiled code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from streams import Source
from testu01 import BUILD

from zotune.kernels import cpu, cpu_noise


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Replacements (old text, new text, how often the old text must occur) in ``cpu_noise.py``."""

    name: str
    meaning: str
    edits: tuple[tuple[str, str, int], ...]


def rounds(count: int) -> Variant:
    """Philox with another number of rounds."""
    return Variant(name=f"rounds {count}", meaning=f"Philox4x32-{count}", edits=(("range(10)", f"range({count})", 1),))


FAULTS = (
    Variant(
        name="stalled counter",
        meaning="every block is used twice in a row",
        edits=(("low + u64(lane)", "low + u64(lane & 254)", 1),),
    ),
    Variant(
        name="lost carry",
        meaning="the block's bits above 32 are dropped",
        edits=(("(u64(block) >> u64(32)) | u64(key[2])", "u64(key[2])", 1),),
    ),
    Variant(
        name="paired steps",
        meaning="steps 2 n and 2 n + 1 share their noise",
        edits=(("u64(key[3])", "u64(key[3] & u32(0xFFFFFFFE))", 1),),
    ),
    Variant(
        name="coarse radius",
        meaning="Box-Muller takes 12 bits of the radius word instead of 24",
        edits=(("u32(a >> u32(8))", "u32(u32(a >> u32(20)) << u32(12))", 1),),
    ),
    Variant(
        name="scaled",
        meaning="the variance is 1.0005 instead of 1",
        edits=(("f32(-2.0))", "f32(-2.001))", 1),),
    ),
    Variant(
        name="repeated signs",
        meaning="of every two rows of 32 signs, the first repeats the second",
        edits=(("u32(x << u32(i))", "u32(x << u32(i | 1))", 2),),
    ),
)

VARIANTS = {variant.name: variant for variant in (*map(rounds, (4, 5, 6, 7)), *FAULTS)}


def edited(text: str, variant: Variant) -> str:
    """The kernels' text with the variant's replacements.

    Raises:
        ValueError: if a text to replace does not occur as often as it should: the kernels have changed.
    """
    for old, new, count in variant.edits:
        if text.count(old) != count:
            raise ValueError(
                f"variant {variant.name!r}: {old!r} occurs {text.count(old)} times in cpu_noise.py, expected {count}; "
                "adapt benchmarks/battery/variants.py to the kernels"
            )
        text = text.replace(old, new)
    return text


def noise_module(variant: Variant) -> ModuleType:
    """``cpu_noise`` with the variant's replacements, as a module of its own."""
    return _load(variant, "cpu_noise", edited(_text(cpu_noise), variant))


def pass_module(variant: Variant) -> ModuleType:
    """``cpu`` on top of `noise_module`: the whole pass over the weights with the variant's noise."""
    noise = noise_module(variant)
    text, package = _text(cpu), "zotune.kernels.cpu_noise"
    assert package in text
    return _load(variant, "cpu", text.replace(package, noise.__name__))


def source(variant: str) -> Source:
    """The noise of a variant, or of zotune itself (``zotune``)."""
    return Source() if variant == "zotune" else Source(noise_module(VARIANTS[variant]))


def _text(module: ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text()


def _load(variant: Variant, file: str, text: str) -> ModuleType:
    # numba looks only at this file to tell whether compiled code is current: its folder stands for all of the text
    digest = hashlib.sha256((text + edited(_text(cpu_noise), variant)).encode()).hexdigest()[:12]
    name = f"battery_{file}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    path = BUILD / digest / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
