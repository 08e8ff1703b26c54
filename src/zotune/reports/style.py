"""Colours and shared settings of the figures."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Final

# Hues after Okabe and Ito, and Tol; first order in greys. Lightness is chosen so that any two are at least 20 apart in
# CIELAB, with normal colour vision and as seen in deuteranopia and protanopia.
METHOD_COLOURS: Final[dict[str, str]] = {
    "ZO": "#0376AF",
    "ZOAdam": "#4BB3F4",
    "ZOSVRG": "#48BB86",
    "LOZO": "#EC9600",
    "LOZO-M": "#AD3A00",
    "HiZOO": "#D98BB9",
    "LOREN": "#16228B",
    "FZOO": "#A79F4D",
    "FOSGD": "#737373",
    "FOAdam": "#383838",
}
# The same hues on a dark ground.
DARK_COLOURS: Final[dict[str, str]] = {
    "ZO": "#157AB4",
    "ZOAdam": "#9BD8FE",
    "ZOSVRG": "#34BF8A",
    "LOZO": "#F0BE35",
    "LOZO-M": "#D95811",
    "HiZOO": "#C08AAF",
    "LOREN": "#8C8CFD",
    "FZOO": "#B1B45A",
    "FOSGD": "#6A6A6A",
    "FOAdam": "#D5D5D5",
}
# A second sign beside the colour, for greys on paper and for eyes that see other colours.
METHOD_MARKERS: Final[dict[str, str]] = {
    "ZO": "o",
    "ZOAdam": "s",
    "ZOSVRG": "^",
    "LOZO": "D",
    "LOZO-M": "v",
    "HiZOO": "P",
    "LOREN": "*",
    "FZOO": "X",
    "FOSGD": "<",
    "FOAdam": ">",
}
LINES: Final = ("-", "--", ":", "-.")
"""Styles of the first, second, ... entry of one method."""

OTHER_COLOUR: Final = "#000000"
GRID_COLOUR: Final = "#DDDDDD"
_LETTER, _SIGN = 0.087, 0.6
"""Inches of a letter in a legend, and of a sign there with what is around it."""
DPI: Final = 150


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a figure: ground, text, grid, and those of the methods."""

    name: str
    ground: str
    text: str
    grid: str
    methods: dict[str, str]

    def of(self, method: str) -> str:
        """The colour of a method; that of the text for a name that is not in the table."""
        return self.methods.get(method, self.text)

    @property
    def settings(self) -> dict[str, Any]:
        """For `matplotlib.rc_context`; letters stay letters in SVG files."""
        return {
            "figure.facecolor": self.ground,
            "axes.facecolor": self.ground,
            "savefig.facecolor": self.ground,
            "text.color": self.text,
            "axes.labelcolor": self.text,
            "axes.edgecolor": self.text,
            "axes.titlecolor": self.text,
            "xtick.color": self.text,
            "ytick.color": self.text,
            "svg.fonttype": "none",
            "svg.hashsalt": "zotune",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
        }


LIGHT: Final = Theme("light", "#FFFFFF", "#1F2328", GRID_COLOUR, METHOD_COLOURS)
DARK: Final = Theme("dark", "#15181D", "#E6E8EB", "#333A44", DARK_COLOURS)
THEMES: Final = ((LIGHT, ""), (DARK, "-dark"))
"""With what the names of their files end in."""


def method_colour(method: str) -> str:
    """The one colour of a method in all figures; black for a name that is not in the table."""
    return METHOD_COLOURS.get(method, OTHER_COLOUR)


def columns_of(labels: Sequence[str], width: float) -> int:
    """As many columns of a legend, which is filled column by column, as have room beside each other in a figure.

    Args:
        labels: of the legend.
        width: of the figure, in inches.
    """
    widths = [_SIGN + _LETTER * max(map(len, label.splitlines()), default=0) for label in labels]
    for columns in range(min(len(labels), 5), 1, -1):
        rows, more = divmod(len(labels), columns)
        ends = itertools.accumulate(rows + (number < more) for number in range(columns))
        if sum(max(widths[end - rows - (number < more) : end]) for number, end in enumerate(ends)) <= width:
            return columns
    return 1
