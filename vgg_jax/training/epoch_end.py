"""What the steps of an epoch came to: sums and metrics, or why the training cannot go on."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np

from vgg_jax.config import OnNan
from vgg_jax.errors import RunError, TrainingDiverged
from vgg_jax.progress import EpochMetrics
from vgg_jax.training.position import Sums
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Totals
from vgg_jax.weights.metadata import first_line

_USUAL_CAUSES = (
    "Usual causes: a learning rate that is too large (try a tenth of it), or weights that do not"
    " belong to the pictures' preprocessing."
)


def checked_sums(totals: Totals, epoch: int, on_nan: OnNan, run: RunFolder) -> Sums:
    """Fetch the sums over the steps of an epoch so far.

    Raises:
        TrainingDiverged: If a step failed and is not to be skipped.
    """
    sums, step = totals.fetch(), int(totals.failed_step)
    if step and on_nan == "stop":
        loss = float(totals.failed_loss)
        what = "loss" if not math.isfinite(loss) else f"gradient (at a loss of {loss:.4g})"
        value = f"became {loss}" if not math.isfinite(loss) else "was not finite"
        raise TrainingDiverged(
            f"The {what} {value} at step {step}, in epoch {epoch}.\n{_USUAL_CAUSES}"
            f"\n{_give_up_epoch(run)} (--on-nan skip leaves such steps out.)"
        )
    return sums


def sums_of_epoch(totals: Totals, epoch: int, on_nan: OnNan, run: RunFolder) -> Sums:
    """Fetch the sums over all steps of an epoch.

    Raises:
        TrainingDiverged: As for `checked_sums`, or if all steps were skipped.
    """
    sums = checked_sums(totals, epoch, on_nan, run)
    if not sums.examples:
        raise TrainingDiverged(
            f"All {sums.skipped} steps of epoch {epoch} were skipped: none had a finite loss and"
            f" gradient.\n{_USUAL_CAUSES}"
        )
    return sums


def metrics_of_epoch(
    sums: Sums,
    losses: np.ndarray,
    correct: np.ndarray,
    run: RunFolder,
    *,
    epoch: int,
    step: int,
    learning_rate: float,
    seconds: float,
    training_seconds: float,
) -> EpochMetrics:
    """Return what an epoch gave.

    Args:
        sums: Over its steps.
        losses: Of the validation examples, `[N]`.
        correct: Whether they are classified right, `[N]`.
        run: What is trained.
        epoch: Number of the epoch.
        step: Steps since the start of the training.
        learning_rate: Of the epoch's last step.
        seconds: Spent on the epoch.
        training_seconds: Of these, spent on training.

    Raises:
        TrainingDiverged: If the validation loss is not finite.
    """
    metrics = EpochMetrics(
        epoch=epoch,
        step=step,
        seconds=seconds,
        images_per_second=sums.examples / training_seconds,
        loss=sums.loss / sums.examples,
        accuracy=sums.correct / sums.examples,
        validation_loss=float(losses.mean(dtype=np.float64)),
        validation_accuracy=float(correct.mean()),
        learning_rate=learning_rate,
        skipped_steps=sums.skipped,
    )
    if not math.isfinite(metrics.validation_loss):
        raise TrainingDiverged(
            f"The validation loss of epoch {epoch} is {metrics.validation_loss}."
            f"\n{_USUAL_CAUSES}\n{_give_up_epoch(run)}"
        )
    return metrics


def _give_up_epoch(run: RunFolder) -> str:
    """Drop what was saved within the epoch, and say what a training can go on from.

    Parameters grow before they are not finite, so that what was saved in between is of no use.
    """
    unsaved = ""
    try:
        run.checkpoints.wait()
    except RunError as error:
        unsaved = f"{first_line(error)}\n"
    with suppress(RunError):  # the failure at hand says more
        run.checkpoints.drop_unfinished()
    epochs = run.checkpoints.epochs()
    if not epochs:
        return f"{unsaved}No epoch before it was saved, so train anew."
    return (
        f"{unsaved}The last good checkpoint is that of epoch {epochs[-1]}. Go on from there:"
        f" {run.resume_command('--override --learning-rate …')}"
    )
