"""A small problem with known gradient, and numbers that are a function of their key, for tests of the twins."""

import hashlib

import numpy as np

from reference.common import Weights

SHAPES = {"matrix": (3, 5), "bias": (4,), "kernel": (2, 3, 2)}
STEP_SIZES = {"lr": 1e-2, "eps": 1e-3}


def keyed(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def gaussian(name, shape, *, step, query, tag):
    return keyed(name, step, query, tag).standard_normal(shape)


def signs(name, shape, *, step, query, tag):
    return np.sign(gaussian(name, shape, step=step, query=query, tag=tag))


def start() -> Weights:
    return {name: keyed("start", name).standard_normal(shape) for name, shape in SHAPES.items()}


CENTRE = {name: keyed("centre", name).standard_normal(shape) for name, shape in SHAPES.items()}
SCALE = {name: keyed("scale", name).uniform(0.5, 2.0, shape) for name, shape in SHAPES.items()}


def quadratic(weights: Weights) -> float:
    return sum(0.5 * float(np.sum(SCALE[name] * (W - CENTRE[name]) ** 2)) for name, W in weights.items())


def gradient(weights: Weights) -> Weights:
    return {name: SCALE[name] * (W - CENTRE[name]) for name, W in weights.items()}


def constant(weights: Weights) -> float:
    return 1.25


def row_covariance(a: np.ndarray, rho: float) -> np.ndarray:
    return rho * np.linalg.inv(rho * np.eye(a.size) + np.outer(a, a))
