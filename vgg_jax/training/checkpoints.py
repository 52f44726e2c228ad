"""Checkpoints of a run: of its completed epochs, and of the epoch that is under way.

Only what is trained is held; the frozen part is the backbone's, which the run refers to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from vgg_jax.errors import RunError
from vgg_jax.progress import EpochMetrics
from vgg_jax.training.checkpoint_store import CheckpointStore

if TYPE_CHECKING:  # it brings Optax, which a prediction does without
    from vgg_jax.training.steps import Totals, TrainState

Which = Literal["best", "latest"]


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
class Restored:
    """What the checkpoint of a completed epoch held.

    Attributes:
        metrics: Of its epoch.
        trained: Trained parameters by path.
        optimizer: Leaves of the optimizer's state by path; empty unless asked for.
        early_stopping: As it stood.
    """

    metrics: EpochMetrics
    trained: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    early_stopping: EarlyStopping


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """Where an epoch under way stood.

    Attributes:
        epoch: Its number.
        step: Optimizer steps since the start of the training.
        seconds: Spent on the epoch so far.
        totals: Sums over the epoch's examples so far, by name.
        trained: Trained parameters by path.
        optimizer: Leaves of the optimizer's state by path.
        early_stopping: As it stood after the epoch before.
    """

    epoch: int
    step: int
    seconds: float
    totals: dict[str, np.ndarray]
    trained: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    early_stopping: EarlyStopping


class Checkpoints:
    """The checkpoints of one run.

    Of completed epochs the latest two and the best are kept: should the latest turn out damaged, a
    training goes on from the one before. The best has the highest validation accuracy; of equals
    the lowest validation loss, then the latest. Of the epoch under way the latest is kept.
    """

    def __init__(self, folder: Path) -> None:
        """Open the checkpoints in `folder`, which is created with the first one."""
        self._folder = folder
        best = BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
        self._epochs = CheckpointStore(
            folder,
            "epoch",
            ("trained", "optimizer"),
            AnyPreservationPolicy([LatestN(2), best]),
            rank=_rank,
        )
        self._unfinished = CheckpointStore(
            folder / "unfinished", "step", ("trained", "optimizer", "totals"), LatestN(1)
        )

    def save(self, metrics: EpochMetrics, state: TrainState, early_stopping: EarlyStopping) -> None:
        """Write the state after an epoch, in the background; waits for the one before.

        Raises:
            RunError: If the one before could not be written, for instance because the disk is full.
        """
        record = {
            "metrics": dataclasses.asdict(metrics),
            "early_stopping": dataclasses.asdict(early_stopping),
        }
        self._epochs.save(metrics.epoch, _arrays(state), record, dataclasses.asdict(metrics))

    def save_unfinished(
        self,
        epoch: int,
        seconds: float,
        state: TrainState,
        totals: Totals,
        early_stopping: EarlyStopping,
    ) -> None:
        """Write the state within an epoch, in the background; waits for the one before.

        Raises:
            RunError: If the one before could not be written.
        """
        step = int(state.step)
        if step in self._unfinished.numbers():
            return  # interrupted before the first step since
        arrays = _arrays(state) | {
            "totals": {name: np.array(value) for name, value in totals._asdict().items()}
        }
        record = {
            "epoch": epoch,
            "step": step,
            "seconds": seconds,
            "early_stopping": dataclasses.asdict(early_stopping),
        }
        self._unfinished.save(step, arrays, record)

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            RunError: If it could not be written.
        """
        self._epochs.wait()
        self._unfinished.wait()

    def close(self) -> None:
        """Wait, then let go of threads and files."""
        try:
            self._epochs.close()
        finally:
            self._unfinished.close()

    def drop_unfinished(self) -> None:
        """Delete the checkpoint within an epoch: the training is complete.

        Raises:
            RunError: If it cannot be deleted.
        """
        for step in self._unfinished.numbers():
            self._unfinished.remove(step)

    def epochs(self) -> list[int]:
        """Return the numbers of the epochs whose checkpoints are complete, ascending."""
        return self._epochs.numbers()

    def find(self, which: Which) -> int:
        """Return the epoch of the best or of the latest checkpoint.

        Raises:
            RunError: If there is none.
        """
        epochs = self.epochs()
        if not epochs:
            raise RunError(
                f"{self._folder.parent} holds no complete checkpoint; train it with a new --run, or"
                f" go on with `vgg-jax train --run {self._folder.parent} --resume`."
            )
        if which == "latest":
            return epochs[-1]

        def rank(epoch: int) -> tuple[float, ...]:
            record = self._epochs.read_record(epoch)
            try:
                return (*_rank(record["metrics"]), epoch)
            except (KeyError, TypeError) as error:
                raise self._epochs.not_read(epoch, error) from error

        return max(epochs, key=rank)

    def restore(self, epoch: int, *, with_optimizer: bool = False) -> Restored:
        """Read the checkpoint of an epoch and compare every array with its checksum.

        Raises:
            RunError: If it cannot be read or an array was changed.
        """
        items = ["trained", "optimizer"] if with_optimizer else ["trained"]
        record = self._epochs.read_record(epoch)
        arrays = self._epochs.read_arrays(epoch, record, items)
        try:
            return Restored(
                EpochMetrics(**record["metrics"]),
                arrays["trained"],
                arrays.get("optimizer", {}),
                EarlyStopping(**record["early_stopping"]),
            )
        except (KeyError, TypeError) as error:
            raise self._epochs.not_read(epoch, error) from error

    def restore_to_go_on(
        self, warn: Callable[[str], None]
    ) -> tuple[Restored | None, Unfinished | None]:
        """Find where a training stands: its last completed epoch, and the one under way.

        What is damaged is set aside, and the checkpoint before is used. Only the process that
        trains may call it: it deletes what an earlier one left half written.

        Args:
            warn: Told of each checkpoint that is damaged.

        Returns:
            The last completed epoch, None if there is none; the epoch after it as far as it had
            come, None if it is yet to start.

        Raises:
            RunError: If a checkpoint cannot be set aside.
        """
        for store in (self._epochs, self._unfinished):
            store.clean()
        restored: Restored | None = None
        while restored is None and self.epochs():
            restored = self._intact(self._epochs, self.epochs()[-1], self._restore_whole, warn)
        unfinished: Unfinished | None = None
        while unfinished is None and self._unfinished.numbers():
            number = self._unfinished.numbers()[-1]
            unfinished = self._intact(self._unfinished, number, self._restore_unfinished, warn)
        under_way = (restored.metrics.epoch if restored else 0) + 1
        if unfinished is not None and unfinished.epoch != under_way:
            # Its epoch is complete by now, or the epoch before it was damaged.
            self._unfinished.remove(unfinished.step)
            unfinished = None
        self.close()
        return restored, unfinished

    def _intact(
        self,
        store: CheckpointStore,
        number: int,
        restore: Callable[[int], Any],
        warn: Callable[[str], None],
    ) -> Any:
        """Return what a checkpoint holds, or None when it is damaged and was set aside."""
        try:
            return restore(number)
        except RunError as error:
            what = str(error).splitlines()[0]
            place = store.set_aside(number)
            warn(f"{what} It was moved to {place}; the training goes on from the one before.")
            return None

    def _restore_whole(self, epoch: int) -> Restored:
        return self.restore(epoch, with_optimizer=True)

    def _restore_unfinished(self, step: int) -> Unfinished:
        record = self._unfinished.read_record(step)
        arrays = self._unfinished.read_arrays(step, record, ("trained", "optimizer", "totals"))
        try:
            return Unfinished(
                epoch=record["epoch"],
                step=record["step"],
                seconds=record["seconds"],
                early_stopping=EarlyStopping(**record["early_stopping"]),
                **arrays,
            )
        except (KeyError, TypeError) as error:
            raise self._unfinished.not_read(step, error) from error


def leaves_by_path(tree: Any) -> dict[str, jax.Array]:
    """Flatten a tree into {path: leaf}."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def fill_leaves(tree: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    """Return a tree of the structure of `tree` with the leaves that `leaves_by_path` would give.

    Raises:
        RunError: If the paths or shapes differ.
    """
    expected = {path: np.shape(leaf) for path, leaf in leaves_by_path(tree).items()}
    given = {path: np.shape(leaf) for path, leaf in leaves.items()}
    if expected != given:
        different = sorted(
            path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path)
        )
        raise RunError(
            "The checkpoint does not fit this configuration; these differ:"
            f" {', '.join(different[:3])}."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[jax.tree_util.keystr(path)], tree
    )


def _arrays(state: TrainState) -> dict[str, dict[str, np.ndarray]]:
    """Copy what a step changes, because the next step takes over the buffers."""
    return {
        "trained": {path: np.array(value) for path, value in state.trained.items()},
        "optimizer": {
            path: np.array(value) for path, value in leaves_by_path(state.optimizer).items()
        },
    }


def _rank(metrics: Any) -> Any:
    return (metrics["validation_accuracy"], -metrics["validation_loss"])
