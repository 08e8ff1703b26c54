"""Colours and shared settings of the figures."""

from typing import Final

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
OTHER_COLOUR: Final = "#000000"
GRID_COLOUR: Final = "#DDDDDD"
DPI: Final = 150


def method_colour(method: str) -> str:
    """The one colour of a method in all figures; black for a name that is not in the table."""
    return METHOD_COLOURS.get(method, OTHER_COLOUR)
