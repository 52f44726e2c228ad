"""Metrics against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vgg_jax.training.metrics import evaluation

PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]]
)
LABELS = np.array([0, 1, 0, 1, 0])


@pytest.fixture
def result():
    return evaluation(np.array([1.0, 2, 3, 4, 5]), PROBABILITIES, LABELS, ["a", "b", "c"])


def test_counts(result):
    assert result.confusion_matrix == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert result.examples == 5
    assert result.loss == 3
    assert result.accuracy == pytest.approx(3 / 5)


def test_class_metrics(result):
    a, b, c = result.classes.values()
    assert (a.precision, a.recall, a.support) == (1, pytest.approx(2 / 3), 3)
    assert (b.precision, b.recall, b.f1, b.support) == (0.5, 0.5, 0.5, 2)
    assert (c.precision, c.recall, c.f1, c.support) == (0, 0, 0, 0)
    assert a.f1 == pytest.approx(0.8)


def test_top_1_is_the_accuracy_and_top_k_of_all_classes_is_left_out(result):
    assert result.top_k == {1: pytest.approx(3 / 5)}
    five = evaluation(np.zeros(2), np.eye(5)[[0, 1]], np.array([0, 2]), list("abcde"))
    assert five.top_k == {1: 0.5, 3: 1.0}  # of equally probable classes the first come first
