"""The folder of a run: its configuration, record, metrics, state and checkpoints."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_jax.config import ResolvedConfig, TrainConfig
from vgg_jax.errors import RunError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.position import Position
from vgg_jax.training.run_files import (
    BACKBONE_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    RECORD_FILE,
    SCRATCH,
    STATE_FILE,
    RunFiles,
    RunRecord,
    metrics_line,
)
from vgg_jax.training.run_lock import LOCK_FILE
from vgg_jax.training.run_plugins import FOLDER as PLUGINS_FOLDER
from vgg_jax.training.run_plugins import copy_local_plugins, record_plugins

if TYPE_CHECKING:  # it brings Optax, which a prediction does without
    from vgg_jax.training.steps import TrainState

CHECKPOINTS_FOLDER = "checkpoints"
_FILES_BEFORE_THE_FIRST_CHECKPOINT = {
    *(CONFIG_FILE, RECORD_FILE, METRICS_FILE, STATE_FILE, BACKBONE_FOLDER),
    *(CHECKPOINTS_FOLDER, PLUGINS_FOLDER),
}
_FIRST_FILES = {LOCK_FILE, f"{RECORD_FILE}{SCRATCH}"}
_PACKAGES = ("vgg-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


class RunFolder(RunFiles):
    """One run on the disk."""

    def __init__(self, path: Path) -> None:
        """Stand for the run in `path`, which need not exist yet."""
        super().__init__(path)
        self.checkpoints = Checkpoints(path / CHECKPOINTS_FOLDER, self.lock.check)

    @contextmanager
    def locked(self, note: Callable[[str], None]) -> Generator[None]:
        """Be the only process that writes into the folder, which is made if need be.

        Args:
            note: Told of a lock that a process left behind.

        Raises:
            RunError: If another process writes into it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.not_written(error) from error
        self.lock.acquire(note)
        try:
            yield
        finally:
            self.lock.release()

    def create(self, config: ResolvedConfig, record: RunRecord) -> None:
        """Write what is known before the first step, in the place of a run that holds nothing.

        Raises:
            RunError: If there is another run, or it cannot be written.
        """
        self.refuse_existing()
        try:
            for path in self.path.iterdir():
                if path.name not in (LOCK_FILE, RECORD_FILE):
                    _remove(path)
            self.write_record(record)  # first: by it the folder is known for a run
            copy_local_plugins(config, self.path)
        except OSError as error:
            raise self.not_written(error) from error
        self.write_config(config)

    def exchange_plugins(self, record: RunRecord, config: ResolvedConfig) -> list[dict[str, Any]]:
        """Return the plugins of `record` with the augmentations of `config` for those it had.

        Raises:
            RunError: If the files of such augmentations cannot be copied into the run.
        """
        try:
            copy_local_plugins(config, self.path)
        except OSError as error:
            raise self.not_written(error) from error
        heads = [plugin for plugin in record.plugins if plugin["kind"] == "head"]
        return heads + [each for each in record_plugins(config) if each["kind"] != "head"]

    def refuse_existing(self) -> None:
        """Raise `RunError` if the folder is in the way of a new run."""
        if self.is_free():
            return
        raise RunError(
            f"The run folder {self.path} exists. Go on with it ({self.resume_command()}), or name"
            " another --run."
        )

    def is_free(self) -> bool:
        """Tell whether a new run may take the folder.

        An empty folder is free, and so is a run that was ended before its first checkpoint.
        """
        return not self.path.exists() or self._is_empty() or self.holds_nothing()

    def _is_empty(self) -> bool:
        """Tell whether there is nothing but what is written before `run.json`."""
        if not self.path.is_dir():
            return False
        return {path.name for path in self.path.iterdir()} <= _FIRST_FILES

    def holds_nothing(self) -> bool:
        """Tell whether this is a run of ours that was ended before its first checkpoint.

        Anything else in it, or any doubt, and it holds something.
        """
        try:
            record = self.read_record()
            history = self.read_metrics()
            paths = [*self.path.iterdir()]
        except (RunError, OSError):
            return False
        names = {path.name.removesuffix(SCRATCH) for path in paths}
        return (
            not record.converted_from
            and not history
            and names <= {*_FILES_BEFORE_THE_FIRST_CHECKPOINT, LOCK_FILE}
            and not any(path.is_symlink() for path in paths)
            and self.checkpoints.is_empty()
            and not self.checkpoints.damaged()
        )

    def save_epoch(self, position: Position, state: TrainState) -> None:
        """Save the state after an epoch, and add its line to `metrics.jsonl`.

        Raises:
            RunError: If that cannot be written, or the lock of the run was lost.
            TrainingDiverged: If a value is not finite.
        """
        self.lock.check()
        self.checkpoints.save_epoch(position, state)
        try:
            with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(metrics_line(position.history[-1]))
        except OSError as error:
            raise self.not_written(error) from error

    def save_unfinished(self, position: Position, state: TrainState) -> None:
        """Save the state within an epoch; errors as for `save_epoch`."""
        self.lock.check()
        self.checkpoints.save_unfinished(position, state)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def new_record(
    config: ResolvedConfig,
    *,
    class_names: tuple[str, ...],
    weights: str,
    weights_digest: str,
    examples: dict[str, int],
    data_digests: dict[str, str],
    converted_from: str | None = None,
) -> RunRecord:
    """Build the record of a new run; adds the versions of packages and plugins."""
    return RunRecord(
        class_names=class_names,
        weights=weights,
        weights_digest=weights_digest,
        examples=examples,
        data_digests=data_digests,
        packages={name: metadata.version(name) for name in _PACKAGES},
        plugins=record_plugins(config),
        converted_from=converted_from,
    )


def claim_run_path(config: TrainConfig, parent: Path = Path("runs")) -> Path:
    """Make the first folder `runs/<data>-<head>-<n>` that does not exist; as `claim_folder`."""
    head = parse_choice(config.head).ref.rpartition("/")[2].rpartition("#")[2]
    return claim_folder(config.data, head, parent)


def claim_folder(data: str, what: str, parent: Path = Path("runs")) -> Path:
    """Make the first folder `runs/<data>-<what>-<n>` that does not exist; returns its path.

    Raises:
        RunError: If it cannot be made.
    """
    name = re.sub(r"[^\w.-]+", "-", Path(data).name or Path(data).resolve().name)
    n = 1
    while True:
        path = parent / f"{name.strip('-.') or 'data'}-{what}-{n}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            n += 1
        except OSError as error:
            raise RunError(f"The run folder {path} cannot be made: {error.strerror}.") from error
