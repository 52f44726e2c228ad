"""One epoch of a training: its steps, then its validation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from vgg_jax.config import OnNan
from vgg_jax.errors import TrainingInterrupted
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.epoch_end import checked_sums, metrics_of_epoch, sums_of_epoch
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.memory import naming_a_smaller_batch
from vgg_jax.training.position import Position, Sums
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Steps, Totals, TrainState, replicate
from vgg_jax.training.validation import closing_at_end, evaluate_batches

_SECONDS_BETWEEN_REPORTS = 0.5


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where batches come from.

    Attributes:
        train: Gives the batches of an epoch, in its order, without so many examples at its
            beginning; told the steps taken before. Perhaps in chunks, as `validation` does.
        validation: Gives the batches of the validation split, in order.
        labels: Of the validation split, int32 `[N]`.
        examples: Number of training examples.
        batch_size: Examples in a batch.
    """

    train: Callable[[int, int, int], Iterator[Inputs]]
    validation: Callable[[], Iterator[Inputs]]
    labels: np.ndarray
    examples: int
    batch_size: int

    def batches_of(self, examples: int) -> int:
        """Return how many batches that many examples make."""
        return -(-examples // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a training saves and when it ends.

    Attributes:
        epochs: Last epoch.
        early_stop: End after this many epochs without a better validation loss; None for never.
        checkpoint_seconds: Most seconds between two checkpoints.
        on_nan: Whether a step whose loss or gradient is not finite ends the training or is skipped.
        interruption: Looked at after each step, or chunk of steps.
    """

    epochs: int
    early_stop: int | None = None
    checkpoint_seconds: float = 600.0
    on_nan: OnNan = "stop"
    interruption: Interruption = dataclasses.field(default_factory=Interruption)


class Epoch:
    """One epoch under way."""

    def __init__(
        self,
        steps: Steps,
        feed: Feed,
        run: RunFolder,
        mesh: jax.sharding.Mesh,
        limits: Limits,
        start: Position,
        progress: Progress,
    ) -> None:
        """Prepare to go on from `start`; the other arguments as for `fit`."""
        self._steps, self._feed, self._mesh = steps, feed, mesh
        self._run, self._limits, self._start, self._progress = run, limits, start, progress
        # Counted from the epoch's start, also where the batches had another size then.
        self._first = feed.batches_of(start.examples)
        self._count = self._first + feed.batches_of(max(feed.examples - start.examples, 0))
        self._begun = self._saved = time.perf_counter()

    @property
    def _seconds(self) -> float:
        return self._start.seconds + time.perf_counter() - self._begun

    def run(self, state: TrainState, learning_rate: float) -> tuple[TrainState, EpochMetrics]:
        """Take the steps that are left, and evaluate; errors as for `fit`."""
        self._progress.epoch_started(self._start.epoch, self._limits.epochs, self._count)
        with naming_a_smaller_batch(self._feed.batch_size, self._advice):
            state, totals = self._train(state)
            sums = sums_of_epoch(totals, self._start.epoch, self._limits.on_nan, self._run)
            trained_for = self._seconds
            losses, probabilities = evaluate_batches(
                partial(self._steps.evaluate, state.trained),
                self._feed.validation(),
                lambda count: self._serve(state, totals, self._count),
            )
        metrics = metrics_of_epoch(
            sums,
            losses,
            probabilities.argmax(1) == self._feed.labels,
            self._run,
            epoch=self._start.epoch,
            step=int(state.step),
            learning_rate=learning_rate,
            seconds=self._seconds,
            training_seconds=trained_for,
        )
        return state, metrics

    def _train(self, state: TrainState) -> tuple[TrainState, Totals]:
        """Take steps, one of them in flight while the next batch is fetched."""
        batches = self._feed.train(self._start.epoch, self._start.examples, int(state.step))
        # Placed as the step returns them, or it compiles twice.
        totals = replicate(self._mesh, Totals.start(self._start.sums))
        taken, reported = self._first, time.perf_counter()
        for inputs in closing_at_end(batches):
            jax.block_until_ready(totals)  # bounds how many batches wait
            if taken > self._first and time.perf_counter() - reported >= _SECONDS_BETWEEN_REPORTS:
                reported = time.perf_counter()
                self._report(taken, totals)  # which are there, before the next step takes them over
            state, totals = self._steps.train(state, totals, inputs)
            taken += inputs.batch_count
            self._serve(state, totals, taken)
        self._report(self._count, totals)
        return state, totals

    def _report(self, steps: int, totals: Totals) -> None:
        sums = self._checked(totals)
        self._progress.step_done(
            steps,
            sums.examples / self._seconds,
            sums.loss / max(sums.examples, 1),
            sums.correct / max(sums.examples, 1),
        )

    def _serve(self, state: TrainState, totals: Totals, batches: int) -> None:
        """Save when it is time to; save and raise when a signal came, or a save has failed."""
        self._run.checkpoints.check()
        signal_number = self._limits.interruption.signal_number
        due = time.perf_counter() - self._saved >= self._limits.checkpoint_seconds
        if signal_number is None and not due:
            return
        done = self._start.examples + (batches - self._first) * self._feed.batch_size
        position = dataclasses.replace(
            self._start,
            examples=min(done, self._feed.examples),
            step=int(state.step),
            seconds=self._seconds,
            sums=self._checked(totals),
        )
        self._run.save_unfinished(position, state)
        self._saved = time.perf_counter()
        if signal_number is not None:
            self._run.checkpoints.wait()
            raise TrainingInterrupted(
                f"Interrupted in epoch {position.epoch}, after step {position.step}, which is"
                f" saved. Go on with: {self._run.resume_command()}",
                signal_number,
            )

    def _checked(self, totals: Totals) -> Sums:
        return checked_sums(totals, self._start.epoch, self._limits.on_nan, self._run)

    def _advice(self, batch_size: int) -> str:
        if self._run.checkpoints.is_empty():
            return f"train again with --batch-size {batch_size}"
        return self._run.resume_command(f"--override --batch-size {batch_size}")
