"""Checkpoints of a run: of its completed epochs, and of the epoch that is under way.

Only what is trained is held; the frozen part is the backbone's, which the run refers to.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vgg_jax.errors import RunError
from vgg_jax.progress import EpochMetrics
from vgg_jax.training.checkpoint_store import Arrays, CheckpointStore
from vgg_jax.training.position import Position
from vgg_jax.training.state_arrays import arrays_of
from vgg_jax.weights.metadata import first_line

if TYPE_CHECKING:  # it brings Optax, which a prediction does without
    from vgg_jax.training.steps import TrainState

Which = Literal["best", "latest"]
_ITEMS = ("trained", "optimizer")
_SLOW_SECONDS = 1.0  # an epoch of so many is written at once; that takes 0.05 if it is tiny
_SECONDS_BETWEEN = 10.0  # the checkpoints of quick ones: steps take up to twice as long meanwhile
_MOST_HELD_BYTES = 200_000_000  # of an epoch
_SMALL_BYTES = 50_000_000  # of an epoch that is held in any case, and waited for if it is the first


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
        position: Where the training stood.
        trained: Trained parameters by path.
        optimizer: Leaves of the optimizer's state by path; empty unless asked for.
    """

    position: Position
    trained: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]


class _Saved(NamedTuple):
    """What a checkpoint is to hold."""

    position: Position
    arrays: Arrays
    came: float  # in the monotonic clock's seconds

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(value.nbytes for held in self.arrays.values() for value in held.values())


class Checkpoints:
    """The checkpoints of one run.

    Of completed epochs the latest two and the best are kept: should the latest turn out damaged, a
    training goes on from the one before. The best has the highest validation accuracy; of equals
    the lowest validation loss, then the latest. Of the epoch under way the latest is kept.

    Epochs of a fraction of a second are not all written, since that would take longer than they do:
    those that would be kept are held, and written when what is on the disk is ten seconds old, and
    at the end. They are written in their order, so that whatever is on the disk, its best epoch is
    there, too. Those that took a second are all written, and so are those too large to be held.

    Attributes:
        most_seconds: How old what is on the disk may become before a quick epoch is written, if
            fewer than ten.
        holders: How many runs are trained at a time: they share the memory for what is held, and
            the time that passes between two epochs.
    """

    def __init__(self, folder: Path, check_lock: Callable[[], None] = lambda: None) -> None:
        """Open the checkpoints in `folder`, which is created with the first one.

        Args:
            folder: Where they are.
            check_lock: Raises `RunError` where they are no longer this process' to write.
        """
        self._folder = folder
        self._check_lock = check_lock
        self._epochs = CheckpointStore(folder, "epoch")
        self._unfinished = CheckpointStore(folder / "unfinished", "step")
        self._position: Position | None = None  # of the training that goes on here
        self._held: dict[int, _Saved] = {}  # epochs that are not written yet, ascending
        self._is_first = True  # the epoch that is saved next
        self._asked = time.monotonic()  # when the training went on after it had saved an epoch
        self._came = self._asked  # when the epoch that was written last was saved
        self.most_seconds, self.holders = math.inf, 1

    def save_epoch(self, position: Position, state: TrainState) -> None:
        """Hold the state after an epoch, and write what is held if it is time to.

        That goes on in the background. The first epoch of a training, those that took a second, and
        those too large to be held, are written now, and wait for the one before. The first is
        waited for unless it is over 50 MB: it tells whether the disk takes checkpoints, and writing
        it would slow several quick ones.

        Raises:
            RunError: If this one or one before could not be written, for instance because the disk
                is full.
            TrainingDiverged: If a value is not finite.
        """
        now = time.monotonic()
        saved = _Saved(position, arrays_of(state), now)
        self._position = position
        others = [*self.epochs(), *self._held]
        # One of them may be written before this one, and then needs its best.
        stay = {max(others), _best(position.history, others)} if others else set()
        self._held = {epoch: held for epoch, held in self._held.items() if epoch in stay}
        self._held[position.history[-1].epoch] = saved
        is_first, self._is_first = self._is_first, False
        # The time is with what the others take to save: if that made all of them slow, it would
        # take longer still, for good.
        is_slow = now - self._asked >= _SLOW_SECONDS * self.holders
        is_large = saved.size > max(_MOST_HELD_BYTES / self.holders, _SMALL_BYTES)
        is_due = now - self._came >= min(self.most_seconds, _SECONDS_BETWEEN)
        with self._letting_go():
            if is_first or is_slow or is_large:
                self._write_all()
                if is_first and saved.size <= _SMALL_BYTES:
                    self._epochs.wait()
            elif is_due and self._epochs.is_idle:
                self._write_first()
        self._asked = time.monotonic()

    def save_unfinished(self, position: Position, state: TrainState) -> None:
        """Write the state within an epoch, in the background; waits for those before.

        Raises:
            RunError: If one before could not be written.
            TrainingDiverged: If a value is not finite.
        """
        with self._letting_go():
            self._write_all()
            self._epochs.wait()  # a training that goes on from within an epoch has them, too
            self._unfinished.wait()
        if position.step not in self._unfinished.numbers():  # else nothing was done since
            saved = _Saved(position, arrays_of(state), time.monotonic())
            self._write(self._unfinished, position.step, saved)

    def _write_first(self) -> None:
        epoch, saved = next(iter(self._held.items()))
        self._write(self._epochs, epoch, saved)
        self._came = saved.came
        del self._held[epoch]

    def _write_all(self) -> None:
        while self._held:
            self._write_first()

    def _write(self, store: CheckpointStore, number: int, saved: _Saved) -> None:
        store.wait()
        self._check_lock()
        self._drop_surplus()
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise store.not_written(error) from error
        store.save(number, saved.arrays, {"position": saved.position.as_record()})

    @contextmanager
    def _letting_go(self) -> Generator[None]:
        """Give up what is held where writing fails: it would fail again, or lack what failed."""
        try:
            yield
        except Exception:
            self._held.clear()
            raise

    def wait(self) -> None:
        """Wait until what was saved is on the disk, and drop what need not stay.

        Raises:
            RunError: If it could not be written.
        """
        with self._letting_go():
            self._write_all()
            self._epochs.wait()
            self._unfinished.wait()
        self._drop_surplus()

    def check(self) -> None:
        """Raise the `RunError` of `wait` if it is known already that it will."""
        with self._letting_go():
            self._epochs.check()
            self._unfinished.check()

    def close(self) -> None:
        """Wait, then let go of threads and files.

        Raises:
            RunError: If what was saved last could not be written.
        """
        try:
            self.wait()
        finally:
            try:
                self._epochs.close()
            finally:
                self._unfinished.close()

    @contextmanager
    def closed_at_end(self) -> Generator[None]:
        """Close them, whatever happens: what fails then is a note to the error at hand."""
        try:
            yield
            self.close()
        except BaseException as error:
            try:
                self.close()
            except RunError as another:
                error.add_note(str(another))
            raise

    def _drop_surplus(self) -> None:
        """Delete the checkpoints that need not stay, once later ones are complete."""
        if self._position is None:
            return  # somebody else's to delete
        with suppress(RunError):  # where one cannot be deleted now, a later time will do
            self._check_lock()
            epochs, steps = self.epochs(), self._unfinished.numbers()
            for epoch in epochs[:-2]:
                if epoch != _best(self._position.history, epochs):
                    self._epochs.remove(epoch)
            for step in steps[:-1]:
                self._unfinished.remove(step)

    def drop_unfinished(self) -> None:
        """Delete the checkpoint within an epoch, for a training that does not go on from there.

        Raises:
            RunError: If it cannot be deleted, or the lock was lost.
        """
        self._check_lock()
        for step in self._unfinished.numbers():
            self._unfinished.remove(step)

    def epochs(self) -> list[int]:
        """Return the numbers of the epochs whose checkpoints are complete, ascending."""
        return self._epochs.numbers()

    def is_empty(self) -> bool:
        """Tell whether there is nothing that a training could go on from."""
        return not (self._held or self.epochs() or self._unfinished.numbers())

    def damaged(self) -> list[Path]:
        """Return the checkpoints that were set aside because they were damaged."""
        return [*self._epochs.damaged(), *self._unfinished.damaged()]

    def leftovers(self) -> list[Path]:
        """Return what a process left behind that ended while it wrote or deleted."""
        return [*self._epochs.leftovers(), *self._unfinished.leftovers()]

    def find(self, which: Which) -> int:
        """Return the epoch of the best or of the latest checkpoint.

        Raises:
            RunError: If there is none, or none says what its epoch gave.
        """
        epochs = self.epochs()
        if not epochs:
            raise RunError(
                f"{self._folder.parent} holds no complete checkpoint; train it with a new --run, or"
                f" go on with `vgg-jax train --run {self._folder.parent} --resume`."
            )
        if which == "latest":
            return epochs[-1]
        failure: RunError | None = None
        for epoch in reversed(epochs):  # a later one tells of all before it
            try:
                return _best(self._read_position(self._epochs, epoch)[0].history, epochs)
            except RunError as error:
                failure = failure or error
        raise failure or AssertionError

    def restore(self, epoch: int, *, with_optimizer: bool = False) -> Restored:
        """Read the checkpoint of an epoch and compare every array with its checksum.

        Raises:
            RunError: If it cannot be read or an array was changed.
        """
        return self._read(self._epochs, epoch, _ITEMS if with_optimizer else _ITEMS[:1])

    def restore_to_go_on(self, warn: Callable[[str], None]) -> Restored | None:
        """Find the furthest point that a training has come to.

        What is damaged is set aside, and the checkpoint before is used. Only the process that
        trains may call it: it deletes what an earlier one left half written.

        Args:
            warn: Told of each checkpoint that is damaged.

        Returns:
            Where the training stood, with the optimizer's state; None if there is no checkpoint.

        Raises:
            RunError: If a checkpoint cannot be set aside.
        """
        for store in (self._epochs, self._unfinished):
            store.clean()
        sound = (self._latest_sound(store, warn) for store in (self._epochs, self._unfinished))
        found = [restored for restored in sound if restored is not None]
        furthest = max(found, key=lambda restored: restored.position.place, default=None)
        if furthest is not None:
            self._position = furthest.position
            self._check_best(furthest.position.history, warn)
            if not furthest.position.examples:
                self.drop_unfinished()  # its epoch is complete
        self.close()
        return furthest

    def _latest_sound(self, store: CheckpointStore, warn: Callable[[str], None]) -> Restored | None:
        """Return what the latest sound checkpoint holds; sets aside those that are damaged."""
        for number in reversed(store.numbers()):
            try:
                return self._read(store, number, _ITEMS)
            except RunError as error:
                _set_aside(store, number, error, warn)
        return None

    def _check_best(self, history: Sequence[EpochMetrics], warn: Callable[[str], None]) -> None:
        """Set the best epoch's checkpoint aside if it is damaged; say so if it is lost."""
        while epochs := self.epochs():
            best = _best(history, epochs)
            try:
                self.restore(best)
                break
            except RunError as error:
                _set_aside(self._epochs, best, error, warn)
        best = max(history, key=lambda metrics: metrics.rank, default=None)
        if best is not None and best.epoch not in self.epochs():
            warn(
                f"The checkpoint of epoch {best.epoch}, the best so far, is lost. The best of the"
                " others counts from here on."
            )

    def _read_position(
        self, store: CheckpointStore, number: int
    ) -> tuple[Position, dict[str, Any]]:
        record = store.read_record(number)
        try:
            return Position.from_record(record["position"]), record
        except (KeyError, TypeError, AttributeError) as error:
            raise store.not_read(number, error) from error

    def _read(self, store: CheckpointStore, number: int, items: tuple[str, ...]) -> Restored:
        position, record = self._read_position(store, number)
        arrays = store.read_arrays(number, record, items)
        return Restored(position, arrays["trained"], arrays.get("optimizer", {}))


def _best(history: Sequence[EpochMetrics], epochs: Sequence[int]) -> int:
    """Return the best of the epochs that have a checkpoint."""
    ranks = {metrics.epoch: metrics.rank for metrics in history if metrics.epoch in epochs}
    return max(epochs, key=lambda epoch: (epoch in ranks, ranks.get(epoch, ()), epoch))


def _set_aside(
    store: CheckpointStore, number: int, error: RunError, warn: Callable[[str], None]
) -> None:
    place = store.set_aside(number)
    warn(f"{first_line(error).rstrip('.')}. It was moved to {place}, and is not used.")
