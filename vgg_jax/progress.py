"""How long work reports on itself; the command line shows it, a script may leave it silent."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EpochMetrics:
    """What one epoch gave; one line of `metrics.jsonl`.

    Attributes:
        epoch: Number of the epoch, from 1.
        step: Optimizer steps since the start of the training.
        seconds: Duration of the whole epoch, validation included; of candidates that a sweep trains
            side by side, an equal share.
        images_per_second: Training images over the seconds spent on training, validation left out.
        loss: Mean training loss, over the epoch as it went.
        accuracy: Share of training images whose most probable class was right, as the epoch went.
        validation_loss: Mean loss over the validation images.
        validation_accuracy: Share of validation images whose most probable class is right.
        learning_rate: Of the epoch's last step.
        skipped_steps: Steps left out because their loss or gradient was not finite.
    """

    epoch: int
    step: int
    seconds: float
    images_per_second: float
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    skipped_steps: int = 0

    @property
    def rank(self) -> tuple[float, float, int]:
        """What makes an epoch the best: accuracy in validation, then the loss, then being later."""
        return self.validation_accuracy, -self.validation_loss, self.epoch


def format_bytes(count: int) -> str:
    """Return a number of bytes as people say it, such as `58.9 MB`; units are powers of 1000."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 999.95 * 1000 ** (power - 1):
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} bytes"


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it, such as `230 ms`, `4.1 s` or `1 min 45 s`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.{0 if seconds >= 0.0095 else 1}f} ms"
    if seconds < 59.5:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


class Progress:
    """Receives what happens; this one keeps silent, so that a subclass overrides what it shows."""

    def note(self, text: str) -> None:
        """Receive a sentence that the user should know."""

    def warn(self, text: str) -> None:
        """Receive a sentence that the user should act on."""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Epoch number `epoch` of `epochs` starts; it has `steps` steps."""

    def step_done(self, step: int, images_per_second: float, loss: float, accuracy: float) -> None:
        """Step number `step` of the epoch is done; loss and accuracy are the epoch's so far."""

    def epoch_done(self, metrics: EpochMetrics, best: bool) -> None:
        """An epoch is over, validation included; `best` tells whether it is the best one so far."""

    def work_started(self, what: str, total: int, unit: str = "images") -> None:
        """Work on `total` images, or `bytes`, starts, such as an evaluation or a download."""

    def work_done(self, count: int) -> None:
        """`count` more of them are done."""

    def close(self) -> None:
        """Leave the terminal as it was."""
