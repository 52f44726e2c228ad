"""A folder of numbered checkpoints, written by Orbax in the background and whole or not at all.

Orbax does not notice flipped bits, so each array's SHA-256 is written with the checkpoint, in a
record that carries a seal over itself, and both are compared when it is read.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from vgg_jax.errors import RunError
from vgg_jax.progress import format_bytes
from vgg_jax.weights.checksums import array_sha256, json_sha256
from vgg_jax.weights.store import numpy_handler

Arrays = Mapping[str, Mapping[str, np.ndarray]]
_REMOVED = "removed"  # a checkpoint is moved there before its files are deleted one by one
_DAMAGED = "damaged"
_SPARE_BYTES = 1 << 18  # for what Orbax writes beside the arrays
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of one that is being written
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError)  # of Orbax, TensorStore and the record
# What Orbax and TensorStore raise where the disk is full, read-only or gone.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)


def _is_no_failure_of_orbax(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


# Orbax logs a traceback of each failure that it then raises, too.
logging.getLogger("absl").addFilter(_is_no_failure_of_orbax)


class CheckpointStore:
    """Checkpoints `PREFIX_NUMBER` in one folder; each holds items of arrays, and a record."""

    def __init__(self, folder: Path, prefix: str, items: Sequence[str]) -> None:
        """Open the checkpoints in `folder`, which is created with the first one.

        Args:
            folder: Where they are.
            prefix: What their numbers count, such as `epoch`.
            items: Names of the groups of arrays that a checkpoint may hold.
        """
        self.folder = folder
        self._prefix, self._items = prefix, tuple(items)
        self._opened: ocp.AsyncCheckpointer | None = None

    @property
    def _checkpointer(self) -> ocp.AsyncCheckpointer:
        if self._opened is None:
            handlers: dict[str, Any] = {item: numpy_handler() for item in self._items}
            self._opened = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(record=ocp.JsonCheckpointHandler(), **handlers)
            )
        return self._opened

    def numbers(self) -> list[int]:
        """Return the numbers of the complete checkpoints, ascending."""
        # One that is not finished has another name.
        pattern = re.compile(rf"{self._prefix}_(\d+)")
        matches = (pattern.fullmatch(path.name) for path in self.folder.glob(f"{self._prefix}_*"))
        return sorted(int(match[1]) for match in matches if match)

    def save(self, number: int, arrays: Arrays, record: Mapping[str, Any]) -> None:
        """Write a checkpoint in the background; waits for the one before.

        Args:
            number: Of the checkpoint.
            arrays: By item and path; nobody may change them afterwards.
            record: What JSON can hold.

        Raises:
            RunError: If the one before could not be written, for instance because the disk is full.
        """
        checksums = {
            item: {path: array_sha256(value) for path, value in held.items()}
            for item, held in arrays.items()
        }
        sealed = {**record, "sha256": checksums}
        sealed["seal"] = json_sha256(sealed)
        try:
            for folder in (self.folder.parent, self.folder):  # no more: a deleted run stays deleted
                folder.mkdir(exist_ok=True)
            self._check_space(arrays)
            self._checkpointer.save(
                self.path(number).absolute(),
                args=ocp.args.Composite(
                    record=ocp.args.JsonSave(sealed),
                    # Orbax refuses empty trees; a converted classifier has no optimizer.
                    **{item: ocp.args.PyTreeSave(held) for item, held in arrays.items() if held},
                ),
            )
        except _WRITE_ERRORS as error:
            raise self._not_written(error) from error

    def _check_space(self, arrays: Arrays) -> None:
        """Raise OSError where the disk is too full: Orbax would say less, and at more length."""
        needed = sum(value.nbytes for held in arrays.values() for value in held.values())
        free = shutil.disk_usage(self.folder).free
        if free < needed + _SPARE_BYTES:
            raise OSError(
                f"No space left on device: {format_bytes(needed)} are needed, {format_bytes(free)}"
                " are free."
            )

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
        """Wait, then let go of threads and files.

        Raises:
            RunError: If what was saved last could not be written.
        """
        if self._opened is None:
            return
        try:
            self.wait()
        finally:
            opened, self._opened = self._opened, None
            opened.close()

    def read_record(self, number: int) -> dict[str, Any]:
        """Read what a checkpoint says of itself, and compare it with its seal.

        Raises:
            RunError: If it cannot be read or was changed.
        """
        try:
            arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = self._checkpointer.restore(self.path(number).absolute(), args=arguments)
            sealed: dict[str, Any] = dict(record["record"])
            if sealed.pop("seal") != json_sha256(sealed):
                raise ValueError("its record does not match its checksum")
        except _READ_ERRORS as error:
            raise self.not_read(number, error) from error
        return sealed

    def read_arrays(
        self, number: int, record: Mapping[str, Any], items: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Read items of a checkpoint and compare every array with its checksum in `record`.

        Raises:
            RunError: If one cannot be read or was changed.
        """
        try:
            targets = {
                item: ocp.args.PyTreeRestore(
                    restore_args={
                        path: ocp.RestoreArgs(restore_type=np.ndarray)
                        for path in record["sha256"][item]
                    }
                )
                for item in items
                if record["sha256"][item]
            }
            path = self.path(number).absolute()
            restored = self._checkpointer.restore(path, args=ocp.args.Composite(**targets))
            arrays = {item: dict(restored[item]) if item in targets else {} for item in items}
            for item in items:
                for path, value in arrays[item].items():
                    if array_sha256(value) != record["sha256"][item][path]:
                        raise RunError(
                            f"The checkpoint {self.path(number)} is damaged: {item} array {path!r}"
                            f" does not match its checksum.\n{_OTHER_CHECKPOINT}"
                        )
        except _READ_ERRORS as error:
            raise self.not_read(number, error) from error
        return arrays

    def path(self, number: int) -> Path:
        """Return where the checkpoint of that number is."""
        return self.folder / f"{self._prefix}_{number}"

    def set_aside(self, number: int) -> Path:
        """Move a checkpoint out of the way, into the folder `damaged`; returns where it is then.

        Raises:
            RunError: If it cannot be moved.
        """
        target = self.folder / _DAMAGED / self.path(number).name
        target = next(
            path
            for path in (target.with_name(f"{target.name}.{n}") for n in range(1, 10**6))
            if not path.exists()
        )
        try:
            target.parent.mkdir(exist_ok=True)
            self.path(number).rename(target)
        except OSError as error:
            raise self._not_written(error) from error
        return target

    def remove(self, number: int) -> None:
        """Delete a checkpoint: at once gone under its name, then its files.

        Raises:
            RunError: If it cannot be deleted.
        """
        try:
            (self.folder / _REMOVED).mkdir(exist_ok=True)
            self._delete_removed()
            self.path(number).rename(self.folder / _REMOVED / self.path(number).name)
            self._delete_removed()
        except OSError as error:
            raise self._not_written(error) from error

    def leftovers(self) -> list[Path]:
        """Return what a process left behind that ended while it wrote or deleted."""
        return [
            *(self.folder / _REMOVED).glob(f"{self._prefix}_*"),
            *self.folder.glob(f"{self._prefix}_*{_UNFINISHED}*"),
        ]

    def damaged(self) -> list[Path]:
        """Return the checkpoints that were set aside."""
        return sorted((self.folder / _DAMAGED).glob(f"{self._prefix}_*"))

    def clean(self) -> None:
        """Delete the leftovers; only the process that writes may.

        Raises:
            RunError: If that fails.
        """
        try:
            for path in self.leftovers():
                shutil.rmtree(path)
        except OSError as error:
            raise self._not_written(error) from error

    def _delete_removed(self) -> None:
        for path in (self.folder / _REMOVED).glob(f"{self._prefix}_*"):
            shutil.rmtree(path)

    def not_read(self, number: int, error: Exception) -> RunError:
        """Return the error that says that a checkpoint cannot be read, and why."""
        return RunError(
            f"The checkpoint {self.path(number)} cannot be read: {_first_line(error)}\n"
            f"{_OTHER_CHECKPOINT}"
        )

    def _not_written(self, error: Exception) -> RunError:
        complete = self.numbers()
        kept = (
            f"the checkpoint of {self._prefix} {complete[-1]} is intact"
            if complete
            else "there is none before it"
        )
        return RunError(
            f"A checkpoint could not be written to {self.folder}: {_first_line(error)}\n"
            f"Of the earlier ones, {kept}. Make room and go on with --resume."
        )


_OTHER_CHECKPOINT = "Use the other checkpoint (--checkpoint best or latest), or train again."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
