"""The training loop: epochs of steps, validation, checkpoints, early stopping."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.errors import TrainingError, TrainingInterrupted
from vgg_jax.model.classifier import Parameters
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.checkpoints import EarlyStopping
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Batch, Steps, Totals, TrainState, put_batch, replicate
from vgg_jax.weights.checksums import array_sha256

_SECONDS_BETWEEN_REPORTS = 0.5


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where batches come from.

    Attributes:
        train: Batches of an epoch, in that epoch's order, without the first so many of them.
        validation: Batches of the validation split.
        steps: Number of training batches an epoch.
    """

    train: Callable[[int, int], Iterator[Any]]
    validation: Callable[[], Iterator[Any]]
    steps: int


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a training begins, or goes on.

    Attributes:
        epoch: The epoch to train first.
        seconds: Spent on it already.
        totals: Sums over its examples so far; None for those of no example.
        early_stopping: As it stood after the epoch before.
    """

    epoch: int = 1
    seconds: float = 0.0
    totals: Totals | None = None
    early_stopping: EarlyStopping = dataclasses.field(default_factory=EarlyStopping)


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a training saves and when it ends.

    Attributes:
        epochs: Last epoch.
        early_stop: End after this many epochs without a better validation loss; None for never.
        checkpoint_seconds: Most seconds between two checkpoints.
        interruption: Looked at after each step.
    """

    epochs: int
    early_stop: int | None = None
    checkpoint_seconds: float = 600.0
    interruption: Interruption = dataclasses.field(default_factory=Interruption)


def fit(
    steps: Steps,
    state: TrainState,
    frozen: Parameters,
    feed: Feed,
    run: RunFolder,
    *,
    mesh: jax.sharding.Mesh,
    limits: Limits,
    learning_rate: float,
    start: Start | None = None,
    progress: Progress,
) -> TrainState:
    """Train to the last epoch or to early stopping, saving every epoch and now and then within one.

    Raises:
        TrainingError: If the loss is not finite, or a frozen parameter changed.
        TrainingInterrupted: When a signal asked for it; where the training stood is saved.
        RunError: If a checkpoint cannot be written.
    """
    start = start or Start()
    stopping = start.early_stopping
    best = max((_rank(metrics) for metrics in run.read_metrics()), default=None)
    frozen_before = _checksums(frozen)
    try:
        for epoch in range(start.epoch, limits.epochs + 1):
            if limits.early_stop and stopping.epochs_since >= limits.early_stop:
                progress.note(
                    f"Stopped: validation loss has not improved for {limits.early_stop} epochs."
                )
                break
            begun = start if epoch == start.epoch else Start(epoch, early_stopping=stopping)
            under_way = _Epoch(steps, frozen, feed, run, mesh, limits, begun, progress)
            state, metrics = under_way.run(state, learning_rate)
            stopping = stopping.after(metrics.validation_loss)
            run.checkpoints.save(metrics, state, stopping)
            run.append_metrics(metrics)
            is_best = best is None or _rank(metrics) >= best
            best = _rank(metrics) if is_best else best
            progress.epoch_done(metrics, is_best)
        _check_frozen(frozen_before, _checksums(frozen))
    finally:
        # However it ends: what was saved is finished before the process is.
        run.checkpoints.close()
        progress.close()
    run.checkpoints.drop_unfinished()
    return state


class _HostTotals:
    """`Totals`, fetched."""

    def __init__(self, totals: Totals) -> None:
        self.loss, self.correct, self.examples = (np.asarray(value).item() for value in totals)


class _Epoch:
    """One epoch under way: its steps, then its validation."""

    def __init__(
        self,
        steps: Steps,
        frozen: Parameters,
        feed: Feed,
        run: RunFolder,
        mesh: jax.sharding.Mesh,
        limits: Limits,
        start: Start,
        progress: Progress,
    ) -> None:
        self._steps, self._frozen, self._feed, self._mesh = steps, frozen, feed, mesh
        self._checkpoints, self._folder = run.checkpoints, run.path
        self._limits, self._start, self._progress = limits, start, progress
        self._begun = self._saved = time.perf_counter()

    @property
    def _seconds(self) -> float:
        return self._start.seconds + time.perf_counter() - self._begun

    def run(self, state: TrainState, learning_rate: float) -> tuple[TrainState, EpochMetrics]:
        """Take the steps that are left, and evaluate."""
        epoch = self._start.epoch
        self._progress.epoch_started(epoch, self._limits.epochs, self._feed.steps)
        state, on_device = self._train(state)
        totals, trained_for = _HostTotals(on_device), self._seconds
        evaluate = partial(self._steps.evaluate, state.trained, self._frozen)
        losses, probabilities, labels = evaluate_batches(
            evaluate,
            self._feed.validation(),
            self._mesh,
            lambda count: self._serve(state, on_device),
        )
        metrics = EpochMetrics(
            epoch=epoch,
            step=int(state.step),
            seconds=self._seconds,
            images_per_second=totals.examples / trained_for,
            loss=totals.loss / totals.examples,
            accuracy=totals.correct / totals.examples,
            validation_loss=float(losses.mean(dtype=np.float64)),
            validation_accuracy=float((probabilities.argmax(1) == labels).mean()),
            learning_rate=learning_rate,
        )
        if not math.isfinite(metrics.validation_loss):
            raise _not_finite("validation loss", metrics.validation_loss, metrics.step)
        return state, metrics

    def _train(self, state: TrainState) -> tuple[TrainState, Totals]:
        """Take steps, one of them in flight while the next batch is fetched."""
        epoch, count = self._start.epoch, self._feed.steps
        done = int(state.step) - (epoch - 1) * count
        totals = self._start.totals or Totals.zero()
        totals = replicate(self._mesh, totals)  # as the step returns it, or it compiles twice
        number = jnp.asarray(epoch, jnp.uint32)
        reported = time.perf_counter()
        for i, batch in enumerate(_closing(self._feed.train(epoch, done)), start=done + 1):
            on_device = put_batch(self._mesh, _for_device(batch))
            jax.block_until_ready(totals)  # bounds how many batches wait
            state, totals = self._steps.train(state, totals, self._frozen, on_device, number)
            now = time.perf_counter()
            if now - reported >= _SECONDS_BETWEEN_REPORTS or i == count:
                reported = now
                sums = self._finite(state, totals)
                self._progress.step_done(
                    i,
                    sums.examples / self._seconds,
                    sums.loss / sums.examples,
                    sums.correct / sums.examples,
                )
            self._serve(state, totals)
        return state, totals

    def _serve(self, state: TrainState, totals: Totals) -> None:
        """Save when it is time to; save and raise when a signal came."""
        signal_number = self._limits.interruption.signal_number
        due = time.perf_counter() - self._saved >= self._limits.checkpoint_seconds
        if signal_number is None and not due:
            return
        self._finite(state, totals)
        epoch, stopping = self._start.epoch, self._start.early_stopping
        self._checkpoints.save_unfinished(epoch, self._seconds, state, totals, stopping)
        self._saved = time.perf_counter()
        if signal_number is not None:
            self._checkpoints.wait()
            raise TrainingInterrupted(
                f"Interrupted in epoch {epoch}, after step {int(state.step)}, which is saved. Go on"
                f" with `vgg-jax train --run {self._folder} --resume`.",
                signal_number,
            )

    def _finite(self, state: TrainState, totals: Totals) -> _HostTotals:
        sums = _HostTotals(totals)
        if not math.isfinite(sums.loss):
            raise _not_finite("loss", sums.loss, int(state.step))
        return sums


def evaluate_batches(
    evaluate: Callable[[Batch], tuple[jax.Array, jax.Array]],
    batches: Iterable[Any],
    mesh: jax.sharding.Mesh,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return losses `[N]`, probabilities `[N, K]` and labels `[N]` of all valid examples, in order.

    `evaluate` gives the losses and probabilities of one batch; `done` is told how many examples it
    had.
    """
    pieces: list[tuple[np.ndarray, ...]] = []
    for batch in _closing(batches):
        losses, probabilities = evaluate(put_batch(mesh, _for_device(batch)))
        keep = batch.valid
        pieces.append(
            (np.asarray(losses)[keep], np.asarray(probabilities)[keep], batch.labels[keep])
        )
        done(int(keep.sum()))
    losses, probabilities, labels = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return losses, probabilities, labels


def _for_device(batch: Any) -> Mapping[str, np.ndarray]:
    return {name: getattr(batch, name) for name in ("images", "labels", "valid", "content")}


def _closing(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterate, and close the iterator when the consumer stops early."""
    iterator = iter(batches)
    if not hasattr(iterator, "close"):
        yield from iterator
        return
    with closing(iterator):  # pyright: ignore[reportArgumentType]
        yield from iterator


def _not_finite(what: str, value: float, step: int) -> TrainingError:
    return TrainingError(
        f"The {what} became {value} at or before step {step}. Usual causes: a learning rate that is"
        " too large (try a tenth of it), or weights that do not belong to the pictures'"
        " preprocessing.\nThe checkpoints of the epochs before are kept."
    )


def _rank(metrics: EpochMetrics) -> tuple[float, float]:
    return metrics.validation_accuracy, -metrics.validation_loss


def _checksums(parameters: Parameters) -> dict[str, str]:
    return {path: array_sha256(np.asarray(value)) for path, value in parameters.items()}


def _check_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise `TrainingError` if a frozen parameter is no longer what it was."""
    changed = sorted(path for path in before if before[path] != after[path])
    if changed:
        raise TrainingError(
            f"Frozen parameters changed during the training: {', '.join(changed[:3])}"
            f"{' and others' if len(changed) > 3 else ''}. That is a fault of the memory or of the"
            " program: trust none of this run's checkpoints, and report it if it happens again."
        )
