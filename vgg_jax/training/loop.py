"""The training loop: epochs, checkpoints, early stopping."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from vgg_jax.errors import RunError, TrainingError, TrainingInterrupted
from vgg_jax.model.classifier import Parameters
from vgg_jax.progress import Progress
from vgg_jax.training.epoch import Epoch, Feed, Limits
from vgg_jax.training.position import Position
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Steps, TrainState
from vgg_jax.weights.checksums import array_sha256


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
    start: Position | None = None,
    progress: Progress,
) -> TrainState:
    """Train to the last epoch or to early stopping, saving every epoch and now and then within one.

    Raises:
        TrainingDiverged: If the loss, its gradient or a parameter is not finite.
        MemoryExhausted: If the memory does not suffice.
        TrainingError: If a frozen parameter changed.
        TrainingInterrupted: When a signal asked for it; where the training stood is saved.
        RunError: If a checkpoint cannot be written.
    """
    position = start or Position()
    saved = {*run.checkpoints.epochs()}
    best = max((metrics.rank for metrics in position.history if metrics.epoch in saved), default=())
    frozen_before = frozen_checksums(frozen)
    run.checkpoints.most_seconds = limits.checkpoint_seconds
    try:
        with run.checkpoints.closed_at_end():
            while position.epoch <= limits.epochs:
                if limits.early_stop and position.early_stopping.epochs_since >= limits.early_stop:
                    progress.note(
                        f"Stopped: validation loss has not improved for {limits.early_stop} epochs."
                    )
                    break
                epoch = Epoch(steps, feed, run, mesh, limits, position, progress)
                state, metrics = epoch.run(state, learning_rate)
                position = position.after(metrics)
                run.save_epoch(position, state)
                progress.epoch_done(metrics, metrics.rank > best)
                best = max(best, metrics.rank)
            check_frozen(frozen_before, frozen_checksums(frozen))
    except RunError:
        run.lock.check()  # that the run is gone says more than what could not be written
        raise
    except TrainingInterrupted:
        check_frozen(frozen_before, frozen_checksums(frozen))
        raise
    finally:
        progress.close()
    run.checkpoints.drop_unfinished()
    return state


def frozen_checksums(parameters: Parameters) -> dict[str, str]:
    """Return the checksum of each frozen parameter, for `check_frozen`."""
    return {path: array_sha256(np.asarray(value)) for path, value in parameters.items()}


def check_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise `TrainingError` if a frozen parameter is no longer what it was."""
    changed = sorted(path for path in before if before[path] != after[path])
    if changed:
        raise TrainingError(
            f"Frozen parameters changed during the training: {', '.join(changed[:3])}"
            f"{' and others' if len(changed) > 3 else ''}. That is a fault of the memory or of the"
            " program: trust none of this run's checkpoints, and report it if it happens again."
        )
