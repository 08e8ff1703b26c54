"""The figures that are drawn while a test runs; `drawn` is a fixture."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, in order."""
    figures: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *given: Any, **more: Any) -> None:
        save(figure, *given, **more)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", spy)
    return figures
