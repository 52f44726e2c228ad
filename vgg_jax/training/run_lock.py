"""The lock of a run, so that one process at a time writes into it.

Two things tell that a lock is held: the kernel's lock on the file, which ends with its process
whatever happens, and a beat that its holder writes into the file. File systems of a network may
lack the first, or not know it from other machines; there a lock is stale once the beat stands
still. The clock is not asked: beats are counted.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vgg_jax.errors import RunError

LOCK_FILE = "lock"
SECONDS_BETWEEN_BEATS = 5.0
_BEATS_MISSED = 3
_NO_KERNEL_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_TRIES, _SECONDS_BETWEEN_TRIES = 10, 0.1  # whoever only looks holds it for a moment, too


@dataclasses.dataclass(frozen=True)
class Holder:
    """What the file of a lock says.

    Attributes:
        host: Name of the machine of the process that holds the lock.
        boot: Identifies the machine since it was started; empty where the system has no such thing.
        pid: Number of the process.
        token: Of this one time that it was taken.
        beat: Counts up while it is held.
    """

    host: str
    boot: str
    pid: int
    token: str
    beat: int = 0

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the process ran since this machine was started."""
        boot = _boot()
        return self.boot == boot if boot else self.host == socket.gethostname()

    @classmethod
    def this_process(cls) -> Holder:
        """Describe this process, with a new token."""
        return cls(socket.gethostname(), _boot(), os.getpid(), uuid.uuid4().hex)

    def __str__(self) -> str:
        """Name the process."""
        return f"process {self.pid} on {self.host}"

    def as_bytes(self) -> bytes:
        """Return the content of the file, of the same length for every beat."""
        values: dict[str, Any] = dataclasses.asdict(self) | {"beat": f"{self.beat:012d}"}
        return json.dumps(values).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Holder | None:
        """Read the file's content; None if it is empty or torn."""
        try:
            values = json.loads(content)
            return cls(**{**values, "pid": int(values["pid"]), "beat": int(values["beat"])})
        except (ValueError, TypeError, KeyError):
            return None


class RunLock:
    """The lock of one run, to be held by one process at a time."""

    def __init__(self, run: Path) -> None:
        """Stand for the lock of the run in that folder, which must exist when it is taken."""
        self._run = run
        self._path = run / LOCK_FILE
        self._file: int | None = None
        self._mine: Holder | None = None
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    def acquire(self, note: Callable[[str], None]) -> None:
        """Take the lock, a stale one, too.

        Args:
            note: Told when that takes a while, and of a stale lock.

        Raises:
            RunError: If another process holds it, or it cannot be written.
        """
        try:
            file, by_kernel = self._open()
        except OSError as error:
            raise RunError(
                f"The lock {self._path} cannot be written: {error.strerror}. Whoever goes on with a"
                " run must be able to write into it."
            ) from error
        try:
            self._take(file, by_kernel, note)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self._released.clear()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def _open(self) -> tuple[int, bool]:
        """Open the file, and lock it where the file system can; returns whether it could."""
        for tries_left in reversed(range(_TRIES)):
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _lock(file, fcntl.LOCK_EX):
                    return file, False
                if _same_file(file, self._path):
                    return file, True
            except BlockingIOError:
                if not tries_left:
                    holder = Holder.from_bytes(_content(file))
                    os.close(file)
                    raise self._refusal(holder) from None
            os.close(file)
            time.sleep(_SECONDS_BETWEEN_TRIES)
        raise self._refusal(None)

    def _take(self, file: int, by_kernel: bool, note: Callable[[str], None]) -> None:
        holder = Holder.from_bytes(_content(file))
        if holder is not None:
            if not (by_kernel and holder.is_on_this_machine):
                note(f"Waiting to see whether {holder} still trains {self._run}.")
                if self._still_beats(holder):
                    raise self._refusal(holder)
            note(f"{self._run} was left by {holder}, which has ended; its lock is taken over.")
        mine = Holder.this_process()
        self._write(file, mine)
        if not by_kernel:
            time.sleep(SECONDS_BETWEEN_BEATS)  # another process may be taking it, too
            if (now := _read(self._path)) is None or now.token != mine.token:
                raise self._refusal(now)
        self._mine = mine

    def _still_beats(self, holder: Holder) -> bool:
        deadline = time.monotonic() + _BEATS_MISSED * SECONDS_BETWEEN_BEATS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, SECONDS_BETWEEN_BEATS / 2))
            now = _read(self._path)
            if now is None:
                return False  # released meanwhile
            if now != holder:
                return True
        return False

    def _refusal(self, holder: Holder | None) -> RunError:
        who = str(holder) if holder else "another process"
        return RunError(
            f"{self._run} is being trained by {who}. Wait until it has ended, stop it (SIGTERM: it"
            " saves first), or name another --run."
        )

    def _write(self, file: int, holder: Holder) -> None:
        try:
            os.pwrite(file, holder.as_bytes(), 0)
            os.truncate(file, len(holder.as_bytes()))
            os.fsync(file)  # other machines see it
        except OSError as error:
            raise RunError(
                f"The lock {self._path} cannot be written: {error.strerror}. Make room, and try"
                " again."
            ) from error

    def _beat(self) -> None:
        """Count up until the lock is released or another process has it."""
        while not self._released.wait(SECONDS_BETWEEN_BEATS):
            file, mine = self._file, self._mine
            now = _read(self._path)
            if file is None or mine is None or (now is not None and now.token != mine.token):
                return
            self._mine = dataclasses.replace(mine, beat=mine.beat + 1)
            with suppress(RunError):  # a full disk, say: `check` or the next checkpoint tells
                self._write(file, self._mine)

    def check(self) -> None:
        """Raise `RunError` if the lock is no longer this process's."""
        if self._mine is None:
            return
        try:
            now = Holder.from_bytes(self._path.read_bytes())
        except FileNotFoundError as error:
            raise RunError(
                f"{self._path} is gone: it, or the run, was deleted or moved while it was being"
                " trained. The training ends; nothing was written since."
            ) from error
        except OSError as error:
            raise RunError(f"{self._path} cannot be read: {error.strerror}.") from error
        if now is None or now.token != self._mine.token:
            raise RunError(
                f"{self._run} was taken over by {now or 'another process'}, because this one gave"
                f" no sign of life for {_BEATS_MISSED * SECONDS_BETWEEN_BEATS:.0f} s. It ends here."
            )

    def release(self) -> None:
        """Let go of the lock."""
        self._released.set()
        if self._heart is not None:
            self._heart.join()
        if self._file is not None:
            now = _read(self._path)
            if self._mine is not None and now is not None and now.token == self._mine.token:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
        self._file = self._mine = self._heart = None

    def holder(self) -> Holder | None:
        """Return who holds the lock, as far as a look at it tells; None if nobody does."""
        try:
            file = os.open(self._path, os.O_RDONLY)
        except OSError:
            return None
        try:
            holder = Holder.from_bytes(_content(file))
            by_kernel = _lock(file, fcntl.LOCK_SH)
            if holder is None or (by_kernel and holder.is_on_this_machine):
                return None
            # Another machine's: a listing does not wait for its beat, but looks at the clock.
            age = abs(time.time() - os.fstat(file).st_mtime)
            return holder if age < 4 * _BEATS_MISSED * SECONDS_BETWEEN_BEATS else None
        except IsADirectoryError:
            return None
        except BlockingIOError:
            return Holder.from_bytes(_content(file)) or Holder("this machine", "", 0, "")
        finally:
            os.close(file)


def _lock(file: int, how: int) -> bool:
    """Lock a file by the kernel; False where its file system has no such thing.

    Raises:
        BlockingIOError: If another process holds the lock.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_KERNEL_LOCK:
            return False
        raise
    return True


def _same_file(file: int, path: Path) -> bool:
    """Tell whether an open file is the one of that name: it may have been deleted meanwhile."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _content(file: int) -> bytes:
    return os.pread(file, 4096, 0)


def _read(path: Path) -> Holder | None:
    """Read the file anew: a network's file system may show an open one as it was."""
    try:
        return Holder.from_bytes(path.read_bytes())
    except OSError:
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
