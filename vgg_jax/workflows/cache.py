"""What lies in the user's cache folder, and its removal."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgg_jax.cache import cache_folder, size_of
from vgg_jax.errors import CacheError
from vgg_jax.table_folders import KINDS, Table, is_held, remove, remove_leftovers, tables
from vgg_jax.weights.download import public_files
from vgg_jax.weights.metadata import METADATA_FILE


@dataclasses.dataclass(frozen=True)
class CachedTable:
    """A table of kept arrays.

    Attributes:
        table: What is known of it.
        in_use: Whether a process has it open, so that it stays.
    """

    table: Table
    in_use: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        values = {**dataclasses.asdict(self.table), "path": str(self.table.path)}
        return {"kind": self.table.kind, **values, "in_use": self.in_use}


@dataclasses.dataclass(frozen=True)
class CachedFiles:
    """Something else in the cache folder.

    Attributes:
        what: It is, in words.
        paths: Its files and folders.
        bytes: Of all of them.
        is_free: Whether it comes again without a download or a command of the user's.
    """

    what: str
    paths: tuple[Path, ...]
    bytes: int
    is_free: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**dataclasses.asdict(self), "paths": [str(path) for path in self.paths]}


@dataclasses.dataclass(frozen=True)
class CacheContents:
    """What is in the cache folder, or was removed from it.

    Attributes:
        folder: The cache folder.
        tables: Of kept arrays, the most recently used first.
        files: All the rest that vgg-jax put there.
    """

    folder: Path
    tables: tuple[CachedTable, ...]
    files: tuple[CachedFiles, ...]

    @property
    def bytes(self) -> int:
        """The size of all of it."""
        return sum(one.table.bytes for one in self.tables) + sum(one.bytes for one in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "folder": str(self.folder),
            "bytes": self.bytes,
            "tables": [one.as_dict() for one in self.tables],
            "files": [one.as_dict() for one in self.files],
        }


def describe_cache() -> CacheContents:
    """Look at all that vgg-jax keeps in the cache folder.

    Raises:
        CacheError: If it cannot be read.
    """
    folder = cache_folder()
    try:
        found = [table for kind in KINDS for table in tables(folder / kind)]
        found.sort(key=lambda table: table.last_used, reverse=True)
        return CacheContents(
            folder,
            tuple(CachedTable(table, is_held(table.path)) for table in found),
            tuple(_files(folder)),
        )
    except OSError as error:
        raise _failure("read", folder, error) from error


def clear_cache(*, everything: bool = False, dry_run: bool = False) -> CacheContents:
    """Remove what comes again by itself: kept arrays and compiled programs.

    Tables that a process has open stay.

    Args:
        everything: Whether to remove weights and the demo's pictures, too.
        dry_run: Whether to remove nothing, and only find it.

    Returns:
        What was removed.

    Raises:
        CacheError: If something cannot be read or removed.
    """
    contents = describe_cache()
    files = tuple(one for one in contents.files if one.is_free or everything)
    removed = [one for one in contents.tables if not one.in_use]
    if not dry_run:
        try:
            # One may have been opened meanwhile.
            removed = [one for one in removed if remove(one.table.path)]
            for kind in KINDS:
                remove_leftovers(contents.folder / kind)
            for path in (path for one in files for path in one.paths):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise _failure("removed", contents.folder, error) from error
    return CacheContents(contents.folder, tuple(removed), files)


def _files(folder: Path) -> Iterator[CachedFiles]:
    # The variable may name a folder with files of the user's: nothing is ours by its place alone.
    downloads = [folder / "downloads" / public.file for public in public_files().values()]
    weights = [path.parent for path in folder.glob(f"weights/*/{METADATA_FILE}")]
    for what, paths, is_free in (
        ("compiled programs", folder.glob("compiled/*"), True),
        ("downloaded weights", filter(Path.exists, downloads), False),
        ("converted weights", weights, False),
        ("the demo's pictures", folder.glob("data/demo-v*"), False),
    ):
        found = tuple(sorted(paths))
        if found:
            yield CachedFiles(what, found, sum(map(size_of, found)), is_free)


def _failure(done: str, folder: Path, error: OSError) -> CacheError:
    return CacheError(
        f"{error.filename or folder} cannot be {done}: {error.strerror or error}.\n"
        "Set the permissions there, or remove it by hand."
    )
