"""Compiled programs, kept in the user's cache folder for the processes that come after.

JAX can keep them by itself, in the folder that its option `jax_compilation_cache_dir` names. By
default it is given the store below instead: killed while it writes, JAX leaves half a program
behind, warns of it at every start from then on, and never mends it; and its folder has no limit.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
from jax._src import compilation_cache

from vgg_jax.cache import CACHE_VARIABLE, cache_folder
from vgg_jax.progress import Progress

_MOST_BYTES = 1 << 30
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_PART = ".part"  # ends the name of a file that is being written
_PART_SECONDS = 3600  # after which nobody writes it any more
_SETTINGS = {  # where the user has not set them in the environment
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # many small programs make a slow start, too
    "jax_persistent_cache_enable_xla_caches": "none",  # XLA's own have no limit, and can fail
}


def keep_compiled_programs(progress: Progress | None = None) -> None:
    """Keep what this process compiles from here on, and use what others have compiled.

    Nothing is changed where JAX' own options name a folder or turn keeping off. Where programs
    cannot be kept they are compiled every time.

    Args:
        progress: Told, once, if they cannot be kept; silent by default.
    """
    options = jax.config.values
    if (
        options["jax_compilation_cache_dir"] is not None
        or not options["jax_enable_compilation_cache"]
        or options["jax_compilation_cache_max_size"] == 0
        or not hasattr(compilation_cache, "get_file_cache")  # JAX' own, which may change
    ):
        return
    folder = cache_folder() / "compiled"
    most_bytes = options["jax_compilation_cache_max_size"]
    store = ProgramStore(
        folder,
        most_bytes=most_bytes if most_bytes > 0 else _MOST_BYTES,
        note=(progress or Progress()).note,
    )
    if not store.open():
        return
    make_other = compilation_cache.get_file_cache
    compilation_cache.get_file_cache = lambda path: (
        (store, path) if path == str(folder) else make_other(path)
    )
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))


class ProgramStore:
    """A folder of programs, each whole, as its checksum shows, or as good as absent.

    Several processes may share it. What was not used for the longest time leaves first.
    """

    def __init__(self, folder: Path, *, most_bytes: int, note: Callable[[str], None]) -> None:
        """Describe the store.

        Args:
            folder: Where it is.
            most_bytes: How large it may become.
            note: Told, once, if it cannot be written.
        """
        self._path = folder  # by this name JAX logs it
        self._most_bytes = most_bytes
        self._note = note
        self._may_hold_bytes = most_bytes  # until it was looked at
        self._is_writable = True

    def open(self) -> bool:
        """Make the folder; False where it cannot be had, or might hold code of somebody else."""
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._path.stat()
            if found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
                raise PermissionError(0, "other users may write there")
        except OSError as error:
            self._give_up(error)
        return self._is_writable

    def get(self, key: str) -> bytes | None:
        """Return the program of that key; None if there is none, or what is left of a damaged one.

        JAX then compiles it, and `put` replaces it.
        """
        path = self._file(key)
        try:
            content = path.read_bytes()
        except OSError:  # most often it is absent
            return None
        checksum, program = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if hashlib.sha256(program).digest() != checksum:
            return None
        with suppress(OSError):  # a folder that may only be read loses nothing either
            os.utime(path)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keep a program, if that is possible."""
        if not self._is_writable or len(value) > self._most_bytes:
            return
        try:
            try:
                self._write(self._file(key), value)
            except FileNotFoundError:  # somebody removed the folder, or what was written
                if self.open():
                    self._write(self._file(key), value)
        except OSError as error:
            self._give_up(error)

    def _write(self, path: Path, value: bytes) -> None:
        self._make_room(_CHECKSUM_BYTES + len(value))
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_PART}")
        try:
            part.write_bytes(hashlib.sha256(value).digest() + value)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)  # where it failed

    def _file(self, key: str) -> Path:
        # Programs are laid out for a number of cores, of which JAX' key says nothing.
        return self._path / hashlib.sha256(f"{key} {processors_of_xla()}".encode()).hexdigest()

    def _make_room(self, size: int) -> None:
        """Delete old programs if the folder may become too large."""
        self._may_hold_bytes += size
        if self._may_hold_bytes <= self._most_bytes:
            return
        files = []
        for path in self._path.iterdir():
            with suppress(FileNotFoundError):  # another process makes room, too
                found = path.stat()
                if path.suffix != _PART:
                    files.append((found.st_mtime, found.st_size, path))
                elif found.st_mtime < time.time() - _PART_SECONDS:
                    path.unlink()  # its process was killed
        self._may_hold_bytes = size + sum(size for _, size, _ in files)
        if self._may_hold_bytes <= self._most_bytes:
            return
        for _, size, path in sorted(files):
            path.unlink(missing_ok=True)
            self._may_hold_bytes -= size
            if self._may_hold_bytes <= self._most_bytes * 3 // 4:  # not for each program anew
                return

    def _give_up(self, error: OSError) -> None:
        self._is_writable = False
        self._note(
            f"Compiled programs cannot be kept in {self._path}: {error.strerror}. Commands start"
            f" more slowly without; the variable {CACHE_VARIABLE} names another place for them."
        )


def processors_of_xla() -> str:
    """Return for how many processors XLA compiles, on which the last bits of results depend."""
    wanted = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC")
    if wanted:
        return wanted
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return str(len(os.sched_getaffinity(0)))
    return str(os.cpu_count())
