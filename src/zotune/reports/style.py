"""Colours and shared settings of the figures."""

import dataclasses
from typing import Any, Final

# Distinguishable with the common colour vision deficiencies (after Okabe and Ito, and Tol); first order in greys.
METHOD_COLOURS: Final[dict[str, str]] = {
    "ZO": "#0072B2",
    "ZOAdam": "#56B4E9",
    "ZOSVRG": "#009E73",
    "LOZO": "#E69F00",
    "LOZO-M": "#D55E00",
    "HiZOO": "#CC79A7",
    "LOREN": "#332288",
    "FZOO": "#999933",
    "FOSGD": "#9A9A9A",
    "FOAdam": "#4D4D4D",
}
# The same hues on a dark ground.
DARK_COLOURS: Final[dict[str, str]] = {
    "ZO": "#4C9FDB",
    "ZOAdam": "#A6DBFA",
    "ZOSVRG": "#2FC79D",
    "LOZO": "#F2B544",
    "LOZO-M": "#F07B36",
    "HiZOO": "#E6A6CB",
    "LOREN": "#A493F5",
    "FZOO": "#C9C95A",
    "FOSGD": "#8F8F8F",
    "FOAdam": "#D6D6D6",
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


def method_colour(method: str) -> str:
    """The one colour of a method in all figures; black for a name that is not in the table."""
    return METHOD_COLOURS.get(method, OTHER_COLOUR)
