"""Candidates trained side by side: one program takes a step of all of them on the same batch.

They differ in numbers alone. Their states are stacked, so that leaves are `[C, …]`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.errors import RunError, TrainingDiverged, TrainingInterrupted
from vgg_jax.model.classifier import Parameters
from vgg_jax.progress import Progress
from vgg_jax.training.chunks import convolves
from vgg_jax.training.epoch import Feed, Limits
from vgg_jax.training.epoch_end import metrics_of_epoch, sums_of_epoch
from vgg_jax.training.inputs import Inputs, fold_batches
from vgg_jax.training.loop import check_frozen, frozen_checksums
from vgg_jax.training.memory import available_bytes
from vgg_jax.training.position import Position
from vgg_jax.training.room import MOST_OF_MEMORY
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import (
    Hyperparameters,
    Steps,
    Totals,
    TrainState,
    replicate,
)
from vgg_jax.training.validation import closing_at_end, evaluate_batches

_MOST_PARAMETERS_ON_CPU = 150_000  # docs/speed.md has the measurements
_BYTES_OF_A_PARAMETER = 16  # its gradient and at most two numbers of the optimizer included


@dataclasses.dataclass(frozen=True, eq=False)  # compiled once for each instance
class StackedSteps:
    """The compiled programs of candidates side by side, each compiled at its first call.

    Attributes:
        steps: The programs of one of them.
    """

    steps: Steps

    @partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def train(
        self, states: TrainState, totals: Totals, inputs: Inputs
    ) -> tuple[TrainState, Totals]:
        """Take a step of each candidate, as `Steps.train` does."""
        step = jax.vmap(self.steps.step, in_axes=(0, 0, None))
        return fold_batches(lambda carry, batch: step(*carry, batch), (states, totals), inputs)

    @partial(jax.jit, static_argnums=0)
    def evaluate(self, trained: Parameters, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """Return each candidate's losses, `[B, C]`, and probabilities, `[B, C, K]`.

        Of a chunk both have its axis of batches, too.
        """
        after_examples = inputs.valid.ndim
        return jax.vmap(partial(self.steps.evaluate, inputs=inputs), out_axes=after_examples)(
            trained
        )


def wins_side_by_side(
    trained: Mapping[str, jax.ShapeDtypeStruct], count: int, mesh: jax.sharding.Mesh
) -> bool:
    """Tell whether `count` candidates of these trained parameters are faster side by side."""
    if count < 2 or convolves(trained):  # several convolutions at once are slower
        return False
    parameters = sum(math.prod(value.shape) for value in trained.values())
    if jax.default_backend() == "cpu":
        return parameters <= _MOST_PARAMETERS_ON_CPU
    size = _BYTES_OF_A_PARAMETER * count * parameters
    return size <= MOST_OF_MEMORY * available_bytes(mesh)


class Lane:
    """The run of one of the candidates; to be entered while they are trained.

    Attributes:
        runs_on: Whether it is still trained.
        failure: Why it cannot go on, or None.
    """

    def __init__(self, run: RunFolder, learning_rate: float) -> None:
        """Save in `run`, which must be locked and new."""
        self.runs_on = True
        self.failure: TrainingDiverged | None = None
        self._run, self._learning_rate = run, learning_rate
        self._position = Position()
        self._training = ExitStack()

    def __enter__(self) -> Self:
        """Record in the run that it is trained."""
        self._training.enter_context(self._run.training())
        self._training.enter_context(self._run.checkpoints.closed_at_end())
        return self

    def __exit__(self, *error: Any) -> None:
        """Record how that ended."""
        if self.failure is None:
            # What went wrong later is nothing to one that is complete.
            self._training.__exit__(*(error if self.runs_on else (None, None, None)))
            return
        with suppress(TrainingDiverged), self._training:
            raise self.failure

    def begin(self, limits: Limits, count: int) -> None:
        """Be one of `count` that save at a time."""
        self._run.checkpoints.most_seconds = limits.checkpoint_seconds
        self._run.checkpoints.holders = count

    def end_epoch(
        self,
        state: TrainState,
        totals: Totals,
        losses: np.ndarray,
        correct: np.ndarray,
        limits: Limits,
        *,
        seconds: float,
        training_seconds: float,
    ) -> None:
        """Save an epoch; it is the last where the candidate diverges or does not improve.

        Args:
            state: After the epoch.
            totals: Of its steps.
            losses: Of the validation examples, `[N]`.
            correct: Whether they are classified right, `[N]`.
            limits: When a training ends.
            seconds: The candidate's share of the time of the epoch.
            training_seconds: Its share of the time spent on training.
        """
        epoch, ends = self._position.epoch, True
        try:
            metrics = metrics_of_epoch(
                sums_of_epoch(totals, epoch, limits.on_nan, self._run),
                losses,
                correct,
                self._run,
                epoch=epoch,
                step=int(state.step),
                learning_rate=self._learning_rate,
                seconds=seconds,
                training_seconds=training_seconds,
            )
            self._position = self._position.after(metrics)
            self._run.save_epoch(self._position, state)
            since = self._position.early_stopping.epochs_since
            ends = bool(limits.early_stop and since >= limits.early_stop)
        except TrainingDiverged as error:
            self.failure = error
        if ends:
            self.end()  # the others may go on for long

    def end(self) -> None:
        """Take note that there are no more epochs, once those that were are saved.

        Raises:
            RunError: If they cannot be.
        """
        self._run.checkpoints.wait()
        self.runs_on = False


def fit_side_by_side(
    stacked: StackedSteps,
    state: TrainState,
    hyperparameters: Sequence[Hyperparameters],
    frozen: Parameters,
    feed: Feed,
    lanes: Sequence[Lane],
    *,
    mesh: jax.sharding.Mesh,
    limits: Limits,
    progress: Progress,
) -> None:
    """Train candidates to the last epoch or to early stopping, saving every epoch.

    All begin with `state`, but for their hyperparameters. One that has ended is computed on, but no
    longer saved.

    Raises:
        TrainingError: If a frozen parameter changed.
        TrainingInterrupted: When a signal asked for it; what is saved is the epochs before.
        RunError: If a checkpoint cannot be written.
    """
    for lane in lanes:
        lane.begin(limits, len(lanes))
    frozen_before = frozen_checksums(frozen)
    starts = [state._replace(hyperparameters=numbers) for numbers in hyperparameters]
    states = replicate(mesh, jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    for epoch in range(1, limits.epochs + 1):
        running = sum(lane.runs_on for lane in lanes)
        if not running:
            break
        begun = time.perf_counter()
        # Placed as the step returns them, or it compiles twice.
        totals = replicate(mesh, jax.tree.map(partial(_repeat, len(lanes)), Totals.start()))
        steps_before = (epoch - 1) * feed.batches_of(feed.examples)
        for inputs in closing_at_end(feed.train(epoch, 0, steps_before)):
            jax.block_until_ready(totals)  # bounds how many batches wait
            states, totals = stacked.train(states, totals, inputs)
            progress.work_done(inputs.batch_count)
            _stop_if_asked(limits, epoch)
        sums = jax.device_get(totals)
        training_seconds = time.perf_counter() - begun
        losses, probabilities = evaluate_batches(
            partial(stacked.evaluate, states.trained),
            feed.validation(),
            lambda count, epoch=epoch: _stop_if_asked(limits, epoch),
        )
        seconds = time.perf_counter() - begun
        held = jax.device_get(states)
        for i, lane in enumerate(lanes):
            if lane.runs_on:
                lane.end_epoch(
                    _slice(held, i),
                    _slice(sums, i),
                    losses[:, i],
                    probabilities[:, i].argmax(1) == feed.labels,
                    limits,
                    seconds=seconds / running,
                    training_seconds=training_seconds / running,
                )
    check_frozen(frozen_before, frozen_checksums(frozen))
    failures: list[RunError] = []
    for lane in lanes:
        try:
            lane.end()
        except RunError as error:  # nothing to the others
            failures.append(error)
    if failures:
        raise failures[0]


def _stop_if_asked(limits: Limits, epoch: int) -> None:
    number = limits.interruption.signal_number
    if number is not None:
        raise TrainingInterrupted(
            f"Interrupted in epoch {epoch} of candidates side by side; the epochs before it are"
            " saved.",
            number,
        )


def _repeat(count: int, leaf: jax.Array) -> jax.Array:
    return jnp.broadcast_to(leaf, (count, *leaf.shape))


def _slice(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], stacked)
