"""Where a training stands: all that going on from there needs, but for the arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vgg_jax.progress import EpochMetrics


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Where early stopping stands.

    Attributes:
        best_loss: Lowest validation loss so far.
        epochs_since: Epochs since then.
    """

    best_loss: float = float("inf")
    epochs_since: int = 0

    def after(self, validation_loss: float) -> EarlyStopping:
        """Return where it stands after one more epoch."""
        if validation_loss < self.best_loss:
            return EarlyStopping(validation_loss, 0)
        return EarlyStopping(self.best_loss, self.epochs_since + 1)


@dataclasses.dataclass(frozen=True)
class Sums:
    """What the steps of an epoch added up to so far.

    Attributes:
        loss: Sum of the losses of the examples.
        correct: How many of them were classified right.
        examples: How many they are.
        skipped: Steps that were left out, because their loss or gradient was not finite.
    """

    loss: float = 0.0
    correct: int = 0
    examples: int = 0
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a training stands.

    Attributes:
        epoch: The epoch under way, or about to start.
        examples: How many of its examples are trained on, or were skipped.
        step: Batches trained on since the start of the training.
        seconds: Spent on the epoch.
        sums: Over those examples.
        early_stopping: After the epoch before.
        history: What each completed epoch gave, in order.
    """

    epoch: int = 1
    examples: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: Sums = dataclasses.field(default_factory=Sums)
    early_stopping: EarlyStopping = dataclasses.field(default_factory=EarlyStopping)
    history: tuple[EpochMetrics, ...] = ()

    @property
    def place(self) -> tuple[int, int]:
        """How far it is; of two positions of a training the greater is further."""
        return self.epoch, self.examples

    def after(self, metrics: EpochMetrics) -> Position:
        """Return where the training stands once the epoch, which gave `metrics`, is over."""
        return Position(
            epoch=self.epoch + 1,
            step=metrics.step,
            early_stopping=self.early_stopping.after(metrics.validation_loss),
            history=(*self.history, metrics),
        )

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return dataclasses.asdict(self) | {"history": list(map(dataclasses.asdict, self.history))}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Position:
        """Build it from what `as_record` gave; TypeError or KeyError if it is something else."""
        parts = {
            "sums": Sums(**values["sums"]),
            "early_stopping": EarlyStopping(**values["early_stopping"]),
            "history": tuple(EpochMetrics(**metrics) for metrics in values["history"]),
        }
        return cls(**{**values, **parts})
