"""Metrics of a classifier from its probabilities, in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class, 0 where undefined, and its number of examples."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        loss: Mean loss.
        accuracy: Share of examples whose most probable class is right.
        top_k: Share of examples whose class is among the k most probable, by k.
        classes: Metrics of each class, by name.
        confusion_matrix: Counts; row = true class, column = predicted class, in the order of
            `classes`.
        examples: How many examples were counted.
    """

    loss: float
    accuracy: float
    top_k: dict[int, float]
    classes: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]
    examples: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return dataclasses.asdict(self)


def evaluation(
    losses: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> Evaluation:
    """Compute all metrics.

    Args:
        losses: `[N]`, the loss of each example.
        probabilities: `[N, K]`.
        labels: `[N]`, class numbers.
        class_names: K names.
    """
    classes = len(class_names)
    predicted = probabilities.argmax(1)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    hits, support, guesses = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    precision = hits / np.maximum(guesses, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + guesses, 1)
    order = np.argsort(
        -probabilities, axis=1, kind="stable"
    )  # of equal ones the first, as argmax has it
    ranks = (order == labels[:, None]).argmax(1)
    return Evaluation(
        loss=float(losses.mean(dtype=np.float64)),
        accuracy=float((predicted == labels).mean()),
        top_k={k: float((ranks < k).mean()) for k in (1, 3, 5) if k == 1 or k < classes},
        classes={
            name: ClassMetrics(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, name in enumerate(class_names)
        },
        confusion_matrix=confusion.tolist(),
        examples=len(labels),
    )
