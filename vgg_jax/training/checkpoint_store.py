"""A folder of numbered checkpoints, written by Orbax in the background and whole or not at all.

Orbax does not notice flipped bits, so each array's SHA-256 is written with the checkpoint, in a
record that carries a seal over itself, and both are compared when it is read. The background is a
thread of this module's, and each group of arrays is saved by itself: where a disk fails, threads of
Orbax' asynchronous and composite checkpointers wait for minutes, and the process cannot end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from vgg_jax.errors import RunError
from vgg_jax.progress import format_bytes
from vgg_jax.weights.arrays import READ_ERRORS, array_handler
from vgg_jax.weights.checksums import array_sha256, json_sha256

Arrays = Mapping[str, Mapping[str, np.ndarray]]
_REMOVED = "removed"  # a checkpoint is moved there before its files are deleted one by one
_DAMAGED = "damaged"
_SPARE_BYTES = 1 << 18  # for what Orbax writes beside the arrays
_PARTIAL = ".partial"  # ends the name of one that is being written
_RECORD = "record.json"
_NICENESS = 10  # a tenth of the time of a core that others want, too
_MOST_CHARACTERS = 200  # of what another program says of a failure
# What Orbax and TensorStore raise where the disk is full, read-only or gone.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)


class CheckpointStore:
    """Checkpoints `PREFIX_NUMBER` in one folder; each holds groups of arrays, and a record."""

    def __init__(self, folder: Path, prefix: str) -> None:
        """Open the checkpoints in `folder`, which is created with the first one.

        Args:
            folder: Where they are; the folder above it must exist when one is written.
            prefix: What their numbers count, such as `epoch`.
        """
        self.folder = folder
        self._prefix = prefix
        self._checkpointer = ocp.Checkpointer(array_handler())
        self._thread: ThreadPoolExecutor | None = None
        self._saving: Future[None] | None = None

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
        self.wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_let_others_go_first)
        self._saving = self._thread.submit(self._write, number, arrays, record)

    def _write(self, number: int, arrays: Arrays, record: Mapping[str, Any]) -> None:
        checksums = {
            item: {path: array_sha256(value) for path, value in held.items()}
            for item, held in arrays.items()
        }
        sealed = {**record, "sha256": checksums}
        sealed["seal"] = json_sha256(sealed)
        self.folder.mkdir(exist_ok=True)  # not its parents: a deleted run stays deleted
        self._check_space(arrays)
        path = self.path(number)
        partial = path.with_name(f"{path.name}{_PARTIAL}")
        partial.mkdir()
        made = partial.stat()
        try:
            for item, held in arrays.items():
                if held:  # Orbax refuses empty trees; a converted classifier has no optimizer
                    self._checkpointer.save(
                        partial.absolute() / item, args=ocp.args.PyTreeSave(dict(held))
                    )
            (partial / _RECORD).write_text(json.dumps(sealed), encoding="utf-8")
            if not os.path.samestat(made, partial.stat()):  # Orbax makes folders that are gone anew
                raise OSError(f"{self.folder} was deleted or moved.")
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # where it failed

    def _check_space(self, arrays: Arrays) -> None:
        """Raise OSError where the disk is too full: Orbax would say less, and at more length."""
        values = [value for held in arrays.values() for value in held.values()]
        needed = sum(value.nbytes for value in values) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"No space left on device: {format_bytes(needed)} are needed, {format_bytes(free)}"
                " are free."
            )

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            RunError: If it could not be written.
        """
        if self._saving is None:
            return
        wait([self._saving])  # interrupted here it can be waited for once more
        saving, self._saving = self._saving, None
        try:
            saving.result()
        except _WRITE_ERRORS as error:
            raise self.not_written(error) from error

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written."""
        return self._saving is None or self._saving.done()

    def check(self) -> None:
        """Raise the `RunError` of `wait` if it is known already that it will."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def close(self) -> None:
        """Wait, then let go of threads and files.

        Raises:
            RunError: If what was saved last could not be written.
        """
        try:
            self.wait()
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.shutdown()

    def read_record(self, number: int) -> dict[str, Any]:
        """Read what a checkpoint says of itself, and compare it with its seal.

        Raises:
            RunError: If it cannot be read or was changed.
        """
        try:
            text = (self.path(number) / _RECORD).read_text(encoding="utf-8")
            sealed: dict[str, Any] = dict(json.loads(text))
            if sealed.pop("seal") != json_sha256(sealed):
                raise ValueError("its record does not match its checksum")
        except READ_ERRORS as error:
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
            arrays = {item: self._restore(number, item, record["sha256"][item]) for item in items}
        except READ_ERRORS as error:
            raise self.not_read(number, error) from error
        return arrays

    def _restore(
        self, number: int, item: str, checksums: Mapping[str, str]
    ) -> dict[str, np.ndarray]:
        if not checksums:
            return {}
        wanted = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in checksums}
        arrays: dict[str, np.ndarray] = self._checkpointer.restore(
            self.path(number).absolute() / item, args=ocp.args.PyTreeRestore(restore_args=wanted)
        )
        for path, value in arrays.items():
            if array_sha256(value) != checksums[path]:
                raise RunError(
                    f"The checkpoint {self.path(number)} is damaged: {item} array {path!r} does not"
                    f" match its checksum.\n{_OTHER_CHECKPOINT}"
                )
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
            raise self.not_written(error) from error
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
            raise self.not_written(error) from error

    def leftovers(self) -> list[Path]:
        """Return what a process left behind that ended while it wrote or deleted."""
        return [
            *(self.folder / _REMOVED).glob(f"{self._prefix}_*"),
            *self.folder.glob(f"{self._prefix}_*{_PARTIAL}"),
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
            raise self.not_written(error) from error

    def _delete_removed(self) -> None:
        for path in (self.folder / _REMOVED).glob(f"{self._prefix}_*"):
            shutil.rmtree(path)

    def not_read(self, number: int, error: Exception) -> RunError:
        """Return the error that says that a checkpoint cannot be read, and why."""
        return RunError(
            f"The checkpoint {self.path(number)} cannot be read: {_first_line(error)}\n"
            f"{_OTHER_CHECKPOINT}"
        )

    def not_written(self, error: Exception) -> RunError:
        """Return the error that says that a checkpoint cannot be written, and why."""
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


def _let_others_go_first() -> None:
    """Give way to a training's steps, which a core that writes meanwhile would hold up.

    On Linux a thread has a priority of its own, and threads that it starts inherit it.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may refuse it: it only costs time
            before = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(before, _NICENESS))


def _first_line(error: Exception) -> str:
    text = str(error).partition("[tensorstore_spec")[0].strip()  # which is longer than a page
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"
