"""The folders of tables of kept arrays: which there are, which are in use, which leave first.

A table is the folder `<cache>/<kind>/<digest>`. Whoever has it open holds a shared lock on its file
`used`, whose time of modification tells when it was opened last; whoever removes it, or intact
shards of it, needs the lock alone. Where a file system has no locks, no table counts as in use:
what is removed from under a process is computed anew; and what a dead process left half written
stays as long as its table.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vgg_jax.array_shards import PARTIAL_PREFIX, rows_in
from vgg_jax.cache import size_of

FEATURES = "features"
KINDS = (FEATURES,)
USED_FILE, DESCRIPTION_FILE = "used", "table.json"
_DIGEST_CHARACTERS = 32
_DIGEST = re.compile(rf"[0-9a-f]{{{_DIGEST_CHARACTERS}}}")
_REMOVED_PREFIX = ".removed-"
_NO_KERNEL_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
_TRIES = 100  # each is spoilt by another process that removes the table at that moment


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known of a table without opening it.

    Attributes:
        path: Its folder.
        settings: What its rows depend on; empty if its description is damaged.
        rows: How many complete ones it holds.
        bytes: Size of all its files.
        last_used: When it was opened last, in seconds since 1970.
    """

    path: Path
    settings: dict[str, Any]
    rows: int
    bytes: int
    last_used: float

    @property
    def kind(self) -> str:
        """What its rows are, such as `features`."""
        return self.path.parent.name


def tables(root: Path) -> list[Table]:
    """Return the tables of a kind, `<cache>/<kind>`, the least recently used first."""
    found: list[Table] = []
    for path in _folders(root):
        if _DIGEST.fullmatch(path.name):
            with suppress(FileNotFoundError):  # removed meanwhile
                found.append(_table(path))
    return sorted(found, key=lambda table: table.last_used)


def _table(path: Path) -> Table:
    try:
        settings = dict(json.loads((path / DESCRIPTION_FILE).read_bytes())["settings"])
    except (OSError, ValueError, TypeError, KeyError):
        settings = {}
    rows = 0
    for shard in shard_folders(path):
        with suppress(OSError):  # damaged: the next one to open the table deals with it
            rows += rows_in(shard)
    return Table(path, settings, rows, size_of(path), _last_used(path))


def digest_of(description: Mapping[str, Any]) -> str:
    """Return the name of the table of that description, which consists of JSON values."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:_DIGEST_CHARACTERS]


def describe(folder: Path, description: Mapping[str, Any]) -> None:
    """Let the table in that folder say for people what it is, if it does not.

    Raises:
        OSError: If that cannot be written.
    """
    path = folder / DESCRIPTION_FILE
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (FileNotFoundError, UnicodeDecodeError):
        pass  # not yet written, or damaged
    partial = folder / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def shard_folders(table: Path) -> list[Path]:
    """Return the folders of a table's complete shards, the earliest first."""
    return [path for path in _folders(table) if not path.name.startswith(".")]


def hold(folder: Path) -> int:
    """Keep a table from being removed; it is made if it does not exist, and marked as used.

    What dead processes left half written is removed if no other process has the table open.

    Returns:
        An open file; closing it lets go of the table.

    Raises:
        OSError: If the folder cannot be written to.
    """
    for _ in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(folder / USED_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        try:
            _remove_what_is_partial(file, folder)
            _lock(file, fcntl.LOCK_SH)
            if _is_file_of(file, folder):
                os.utime(file)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    raise OSError(errno.EBUSY, "other processes keep removing it", str(folder))


def _remove_what_is_partial(file: int, folder: Path) -> None:
    # A process that is writing has the table open, and its shared lock refuses this one.
    with suppress(BlockingIOError):
        if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in folder.glob(f"{PARTIAL_PREFIX}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def alone(file: int) -> Generator[bool]:
    """Tell whether no other process has a table open; if so, none can open it meanwhile.

    Args:
        file: What `hold` returned.
    """
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_alone = True
    except BlockingIOError:
        is_alone = False
    try:
        yield is_alone
    finally:
        # After a refusal, too: it has lost the lock that there was. A process that removes the
        # table at that moment ends the keeping on disk, which is told; nothing comes out wrong.
        _lock(file, fcntl.LOCK_SH)


def is_held(folder: Path) -> bool:
    """Tell whether a process has the table open."""
    path = folder / USED_FILE
    try:
        # Over NFS a file is locked only by who may write to it.
        file = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def remove(folder: Path) -> bool:
    """Remove a table; returns False, and removes nothing, if a process has it open or it is gone.

    Raises:
        OSError: If it cannot be removed.
    """
    try:
        file = os.open(folder / USED_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return False
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_file_of(file, folder):
            return False  # another process has removed it, and a third one may have made it anew
        # Renamed first, so that nobody ever opens a part of it.
        removed = folder.rename(folder.with_name(f"{_REMOVED_PREFIX}{uuid.uuid4().hex}"))
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    with suppress(FileNotFoundError):  # another process took it for a left-over
        shutil.rmtree(removed)
    return True


def make_room(root: Path, most_bytes: int, keep: Path) -> None:
    """Remove tables, the least recently used first, until `root` takes no more than `most_bytes`.

    Tables that a process has open stay, and so does `keep`, even if that is not enough.

    Raises:
        OSError: If one cannot be removed.
    """
    remove_leftovers(root)
    excess_bytes = size_of(root) - most_bytes
    for table in tables(root):
        if excess_bytes <= 0:
            return
        if table.path != keep and remove(table.path):
            excess_bytes -= table.bytes


def remove_leftovers(root: Path) -> None:
    """Remove what is left of tables whose removal was interrupted."""
    for path in _folders(root):
        if path.name.startswith(_REMOVED_PREFIX):
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _last_used(table: Path) -> float:
    try:
        return (table / USED_FILE).stat().st_mtime
    except FileNotFoundError:
        return table.stat().st_mtime


def _lock(file: int, how: int) -> bool:
    """Lock a file; returns False where its file system has no locks.

    Raises:
        BlockingIOError: If `how` says not to wait, and another open file of that name is locked.
    """
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno in _NO_KERNEL_LOCK:
            return False
        raise
    return True


def _is_file_of(file: int, folder: Path) -> bool:
    """Tell whether an open file is still the table's: the table may have been removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(file), (folder / USED_FILE).stat())
    except FileNotFoundError:
        return False
