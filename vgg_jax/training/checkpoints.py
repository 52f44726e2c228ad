"""Checkpoints of a run: the latest and the best epoch, written by Orbax in the background.

Orbax does not notice flipped bits, so each array's SHA-256 is written with the checkpoint and
compared when it
is restored. Only what is trained is held; the frozen part is the backbone's, which the run refers
to.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from vgg_jax.errors import RunError
from vgg_jax.progress import EpochMetrics
from vgg_jax.weights.checksums import array_sha256
from vgg_jax.weights.store import numpy_handler

if TYPE_CHECKING:  # it brings Optax, which a prediction does without
    from vgg_jax.training.steps import TrainState

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
    """What a checkpoint held.

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


class Checkpoints:
    """The checkpoints of one run, of which the latest and the best are kept.

    The best has the highest validation accuracy; of equals the lowest validation loss, then the
    latest.
    """

    def __init__(self, folder: Path) -> None:
        """Open the checkpoints in `folder`, which is created with the first one."""
        self._folder = folder
        policy = AnyPreservationPolicy(
            [LatestN(1), BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)]
        )
        options = ocp.CheckpointManagerOptions(
            create=False, step_prefix="epoch", best_fn=_rank, preservation_policy=policy
        )
        self._options = options
        self._opened: ocp.CheckpointManager | None = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._opened = ocp.CheckpointManager(
                self._folder.absolute(),
                options=self._options,
                item_handlers={
                    "trained": numpy_handler(),
                    "optimizer": numpy_handler(),
                    "record": ocp.JsonCheckpointHandler(),
                },
            )
        return self._opened

    def save(self, metrics: EpochMetrics, state: TrainState, early_stopping: EarlyStopping) -> None:
        """Write the state after an epoch, in the background; waits for the one before.

        Raises:
            RunError: If the one before could not be written, for instance because the disk is full.
        """
        # Copies, because the next step takes over the buffers while Orbax is still writing.
        arrays = {
            "trained": {path: np.array(value) for path, value in state.trained.items()},
            "optimizer": {
                path: np.array(value) for path, value in leaves_by_path(state.optimizer).items()
            },
        }
        record = {
            "metrics": dataclasses.asdict(metrics),
            "early_stopping": dataclasses.asdict(early_stopping),
            "sha256": {
                item: {path: array_sha256(value) for path, value in held.items()}
                for item, held in arrays.items()
            },
        }
        try:
            self._manager.save(
                metrics.epoch,
                args=ocp.args.Composite(
                    record=ocp.args.JsonSave(record),
                    # Orbax refuses empty trees; a converted classifier has no optimizer.
                    **{item: ocp.args.PyTreeSave(held) for item, held in arrays.items() if held},
                ),
                metrics=dataclasses.asdict(metrics),
            )
        except _WRITE_ERRORS as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            RunError: If it could not be written.
        """
        if self._opened is None:
            return
        try:
            self._opened.wait_until_finished()
        except _WRITE_ERRORS as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Wait, then let go of threads and files."""
        self.wait()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def epochs(self) -> list[int]:
        """Return the numbers of the epochs whose checkpoints are complete, ascending."""
        # From the disk, not from Orbax's manager, which forgets them when a write fails. One that
        # is not finished has another name.
        matches = (re.fullmatch(r"epoch_(\d+)", path.name) for path in self._folder.glob("epoch_*"))
        return sorted(int(match[1]) for match in matches if match)

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
        return max(epochs, key=lambda epoch: (*_rank(self._read_record(epoch)["metrics"]), epoch))

    def restore(self, epoch: int, *, with_optimizer: bool = False) -> Restored:
        """Read the checkpoint of an epoch and compare every array with its checksum.

        Raises:
            RunError: If it cannot be read or an array was changed.
        """
        items = ["trained", "optimizer"] if with_optimizer else ["trained"]
        record = self._read_record(epoch)
        arrays: dict[str, dict[str, np.ndarray]] = {"optimizer": {}}
        try:
            metrics = EpochMetrics(**record["metrics"])
            early_stopping = EarlyStopping(**record["early_stopping"])
            targets = {
                item: ocp.args.PyTreeRestore(
                    restore_args={
                        path: ocp.RestoreArgs(restore_type=np.ndarray)
                        for path in record["sha256"][item]
                    }
                )
                for item in items
            }
            restored = self._manager.restore(epoch, args=ocp.args.Composite(**targets))
            arrays |= dict(restored.items())
        except _READ_ERRORS as error:
            raise self._not_read(epoch, error) from error
        for item in items:
            for path, value in arrays[item].items():
                if array_sha256(value) != record["sha256"][item][path]:
                    where = self._folder / f"epoch_{epoch}"
                    raise RunError(
                        f"The checkpoint {where} is damaged: {item} array {path!r} does not match "
                        f"its checksum.\n{_OTHER_CHECKPOINT}"
                    )
        return Restored(metrics, arrays["trained"], arrays["optimizer"], early_stopping)

    def _read_record(self, epoch: int) -> dict[str, Any]:
        """Read what a checkpoint says of itself: metrics, early stopping, checksums."""
        try:
            arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = self._manager.restore(epoch, args=arguments)["record"]
            return {key: record[key] for key in ("metrics", "early_stopping", "sha256")}
        except _READ_ERRORS as error:
            raise self._not_read(epoch, error) from error

    def _not_read(self, epoch: int, error: Exception) -> RunError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = self._folder / f"epoch_{epoch}"
        return RunError(f"The checkpoint {where} cannot be read: {reason}\n{_OTHER_CHECKPOINT}")

    def _not_written(self, error: Exception) -> RunError:
        complete = self.epochs()
        kept = (
            f"the checkpoint of epoch {complete[-1]} is intact"
            if complete
            else "there is none before it"
        )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return RunError(
            f"A checkpoint could not be written to {self._folder}: {reason}\n"
            f"Of the earlier ones, {kept}. Make room and go on with --resume."
        )


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


_OTHER_CHECKPOINT = "Use the other checkpoint (--checkpoint best or latest), or train again."
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError)  # of Orbax, TensorStore and the record
# What Orbax and TensorStore raise where the disk is full, read-only or gone.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)


def _rank(metrics: Any) -> Any:
    return (metrics["validation_accuracy"], -metrics["validation_loss"])
