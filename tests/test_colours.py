"""The methods' colours, as eyes with and without a colour vision deficiency see them."""

import itertools

import numpy as np
import pytest

from zotune.reports.style import DARK, LIGHT

# Machado, Oliveira & Fernandes 2009 (IEEE TVCG 15), of full severity, on linear RGB.
SEEN = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    x, y, z = np.cbrt(TO_XYZ @ np.clip(rgb, 0.0, 1.0) / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def luminance(colour):
    return float(TO_XYZ[1] @ linear(colour))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("vision", SEEN)
def test_any_two_methods_can_be_told_apart(theme, vision):
    points = {method: lab(SEEN[vision] @ linear(colour)) for method, colour in theme.methods.items()}
    for (one, left), (other, right) in itertools.combinations(points.items(), 2):
        assert np.linalg.norm(left - right) > 20.0, (one, other)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_lines_stand_out_from_the_ground(theme):
    ground = luminance(theme.ground)
    for method, colour in theme.methods.items():
        low, high = sorted((ground + 0.05, luminance(colour) + 0.05))
        assert high / low > 2.2, method


def test_a_method_has_the_same_hue_in_both_themes():
    for method, colour in LIGHT.methods.items():
        (_, *light), (_, *dark) = lab(linear(colour)), lab(linear(DARK.methods[method]))
        if np.hypot(*light) > 5.0:  # not a grey
            cosine = np.dot(light, dark) / (np.hypot(*light) * np.hypot(*dark))
            assert cosine > 0.85, method
