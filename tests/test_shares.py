"""What is known without reading a text: the loss and accuracy of the prior of the classes."""

import math

import numpy as np
import pytest

from zotune.tasks.shares import class_shares


def test_loss_and_accuracy_are_those_of_the_prior():
    generator = np.random.default_rng(0)
    train, validation = (generator.choice(3, size=rows, p=(0.5, 0.3, 0.2)) for rows in (200, 70))
    shares = np.bincount(train) / len(train)
    found = class_shares(train.tolist(), validation.tolist())
    assert found["loss"] == pytest.approx(float(-np.log(shares[validation]).mean()))
    assert found["accuracy"] == pytest.approx(float((validation == shares.argmax()).mean()))


def test_equal_classes_and_what_cannot_be_known():
    assert class_shares([0, 1], [1, 1, 0, 0]) == {"accuracy": 0.5, "loss": pytest.approx(math.log(2))}
    assert class_shares([0, 0], [0, 1]) == {"accuracy": 0.5}  # of class 1 nothing is known
    assert class_shares([], [1]) == class_shares([1], []) == {}
