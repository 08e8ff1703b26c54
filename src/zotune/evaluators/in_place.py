"""The fallback: perturb the stored weights for the length of a query, then restore them from a copy, bit for bit.

It needs a second copy of the trainable weights, and works with anything that hides its forward from hooks (compiled
or scripted models).
"""

from __future__ import annotations

from zotune.evaluators.overlay import Mode, Overlay


class InPlace(Overlay):
    """Perturbs all parameters in place; see the module's docstring."""

    def __init__(self) -> None:
        super().__init__(mode=Mode.WRITTEN)
