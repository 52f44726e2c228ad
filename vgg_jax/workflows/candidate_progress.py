"""How the training of one candidate of a sweep is shown."""

from __future__ import annotations

from vgg_jax.progress import Progress


class CandidateProgress(Progress):
    """Shows the training of one candidate as one piece of work; a table tells what it gave."""

    def __init__(self, name: str, progress: Progress) -> None:
        """Show it by its name on `progress`."""
        self._name, self._progress = name, progress
        self._started, self._done = False, 0

    def note(self, text: str) -> None:
        """Pass the sentence on."""
        self._progress.note(f"{self._name}: {text}")

    def warn(self, text: str) -> None:
        """Pass the sentence on."""
        self._progress.warn(f"{self._name}: {text}")

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Start the work on all epochs with the first."""
        self._done = 0
        if not self._started:
            self._started = True
            self._progress.work_started(self._name, (epochs - epoch + 1) * steps, "steps")

    def step_done(self, step: int, images_per_second: float, loss: float, accuracy: float) -> None:
        """Count the steps since the last one that was told."""
        self._progress.work_done(step - self._done)
        self._done = step

    def work_started(self, what: str, total: int, unit: str = "images") -> None:
        """Pass it on."""
        self._progress.work_started(what, total, unit)

    def work_done(self, count: int) -> None:
        """Pass it on."""
        self._progress.work_done(count)

    def close(self) -> None:
        """Pass it on."""
        self._progress.close()
