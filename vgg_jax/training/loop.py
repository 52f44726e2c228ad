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

from vgg_jax.errors import TrainingError
from vgg_jax.model.classifier import Parameters
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.checkpoints import EarlyStopping
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Batch, Steps, Totals, TrainState, put_batch, replicate

_SECONDS_BETWEEN_REPORTS = 0.5


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where batches come from.

    Attributes:
        train: Batches of an epoch, in that epoch's order.
        validation: Batches of the validation split.
        steps: Number of training batches an epoch.
    """

    train: Callable[[int], Iterator[Any]]
    validation: Callable[[], Iterator[Any]]
    steps: int


def fit(
    steps: Steps,
    state: TrainState,
    frozen: Parameters,
    feed: Feed,
    run: RunFolder,
    *,
    mesh: jax.sharding.Mesh,
    epochs: int,
    learning_rate: float,
    first_epoch: int = 1,
    early_stop: int | None = None,
    early_stopping: EarlyStopping | None = None,
    progress: Progress,
) -> TrainState:
    """Train from `first_epoch` to `epochs` or to early stopping, saving every epoch.

    Raises:
        TrainingError: If the loss is not finite.
        RunError: If a checkpoint cannot be written.
    """
    stopping = early_stopping or EarlyStopping()
    best = max((_rank(metrics) for metrics in run.read_metrics()), default=None)
    try:
        for epoch in range(first_epoch, epochs + 1):
            if early_stop and stopping.epochs_since >= early_stop:
                progress.note(f"Stopped: validation loss has not improved for {early_stop} epochs.")
                break
            started = time.perf_counter()
            progress.epoch_started(epoch, epochs, feed.steps)
            state, totals = _train_epoch(steps, state, frozen, feed, mesh, epoch, progress)
            trained_for = time.perf_counter() - started
            evaluate = partial(steps.evaluate, state.trained, frozen)
            losses, probabilities, labels = evaluate_batches(evaluate, feed.validation(), mesh)
            metrics = EpochMetrics(
                epoch=epoch,
                step=int(state.step),
                seconds=time.perf_counter() - started,
                images_per_second=totals.examples / trained_for,
                loss=totals.loss / totals.examples,
                accuracy=totals.correct / totals.examples,
                validation_loss=float(losses.mean(dtype=np.float64)),
                validation_accuracy=float((probabilities.argmax(1) == labels).mean()),
                learning_rate=learning_rate,
            )
            if not math.isfinite(metrics.validation_loss):
                raise _not_finite("validation loss", metrics.validation_loss, metrics.step)
            stopping = stopping.after(metrics.validation_loss)
            run.checkpoints.save(metrics, state, stopping)
            run.append_metrics(metrics)
            is_best = best is None or _rank(metrics) >= best
            best = _rank(metrics) if is_best else best
            progress.epoch_done(metrics, is_best)
    finally:
        # Ctrl-C included: what was saved is finished before the process ends.
        run.checkpoints.close()
        progress.close()
    return state


class _HostTotals:
    """`Totals`, fetched."""

    def __init__(self, totals: Totals) -> None:
        self.loss, self.correct, self.examples = (np.asarray(value).item() for value in totals)


def _train_epoch(
    steps: Steps,
    state: TrainState,
    frozen: Parameters,
    feed: Feed,
    mesh: jax.sharding.Mesh,
    epoch: int,
    progress: Progress,
) -> tuple[TrainState, _HostTotals]:
    """Run the steps of one epoch, one step of them in flight while the next batch is fetched."""
    totals = replicate(mesh, Totals.zero())  # as the step returns it, or it compiles twice
    number = jnp.asarray(epoch, jnp.uint32)
    started = reported = time.perf_counter()
    for i, batch in enumerate(_closing(feed.train(epoch)), start=1):
        on_device = put_batch(mesh, _for_device(batch))
        jax.block_until_ready(totals)  # bounds how many batches wait
        state, totals = steps.train(state, totals, frozen, on_device, number)
        now = time.perf_counter()
        if now - reported >= _SECONDS_BETWEEN_REPORTS or i == feed.steps:
            reported = now
            sums = _HostTotals(totals)
            if not math.isfinite(sums.loss):
                raise _not_finite("loss", sums.loss, int(state.step))
            rate = sums.examples / (time.perf_counter() - started)
            progress.step_done(i, rate, sums.loss / sums.examples, sums.correct / sums.examples)
    return state, _HostTotals(totals)


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
