"""Tables of equal-shaped arrays that are kept on disk, such as the frozen network's features.

A table is named by what its rows depend on, a row by what it was made from: whoever asks for the
same finds it. Several processes may read and write a table at a time.
"""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from vgg_jax.array_shards import (
    ID_BYTES,
    DamagedShardError,
    DType,
    Row,
    Shard,
    ShardWriter,
    remove_shard,
    row_bytes,
    shard_bytes,
)
from vgg_jax.cache import CACHE_VARIABLE, size_of
from vgg_jax.errors import CacheError
from vgg_jax.progress import format_bytes
from vgg_jax.table_folders import alone, describe, digest_of, hold, make_room, shard_folders

SHARD_BYTES = 256_000_000  # what a full disk or a killed process loses at most
_FORMAT = 1


class ArrayTable:
    """A table of rows, each with an id of 16 bytes, open for reading and writing.

    Its methods may be called from several threads at a time.

    Attributes:
        folder: Where it is: `root`, and a digest of what describes the table.
        shape: Of a row.
        dtype: Of a row.
        damaged: How many rows, and whole shards, were found damaged since it was opened. Their rows
            count as absent and can be appended anew. So do those of shards that were removed, which
            are not damaged.
    """

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, Any],
        shape: tuple[int, ...],
        dtype: DType,
        *,
        limit_bytes: int | None = None,
        beside: Collection[ArrayTable] = (),
    ) -> None:
        """Open a table, which is made if it does not exist.

        Args:
            root: Folder of the tables of a kind, such as `cache_folder() / FEATURES`.
            settings: All that rows depend on beside their ids, as JSON values.
            shape: Of a row.
            dtype: Of a row. What NumPy has no name for in files, such as bfloat16, is stored as
                unsigned integers of the same bits.
            limit_bytes: Most that all tables under `root` may take together; where a row would not
                fit, tables that no process has open leave, the least recently used first.
            beside: Tables that this process has open under `root`: where that is not enough, what
                none of them was asked for leaves, too, but for tables that another process has
                open.

        Raises:
            CacheError: If the folder cannot be made, read or written to.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.damaged = 0
        self._stored = _stored_as(self.dtype)
        self._row_bytes = row_bytes(shape, self._stored)
        self._root, self._limit_bytes, self._beside = root, limit_bytes, beside
        description = _description(settings, shape, self.dtype)
        self.folder = root / digest_of(description)
        self._places: dict[bytes, tuple[Shard, int]] = {}
        self._places_lock = threading.Lock()
        self._shards: set[Shard] = set()
        self._wanted: set[Shard] = set()
        self._writer: ShardWriter | None = None
        self._writer_lock = threading.Lock()
        self._other_bytes = 0  # under `root`, beside what the writer has written
        self._held: int | None = None
        try:
            self._held = hold(self.folder)
            describe(self.folder, description)
            for folder in shard_folders(self.folder):
                self._open_shard(folder)
        except OSError as error:
            self._let_go()
            self._fail(error)

    @classmethod
    def open_existing(
        cls, root: Path, settings: Mapping[str, Any], shape: tuple[int, ...], dtype: DType
    ) -> Self | None:
        """Open a table if it exists; arguments and errors as for the table itself."""
        folder = root / digest_of(_description(settings, shape, np.dtype(dtype)))
        return cls(root, settings, shape, dtype) if folder.is_dir() else None

    def _open_shard(self, folder: Path, *, wanted: bool = False) -> None:
        """Let the rows of a shard be read; it is removed if it is damaged."""
        try:
            shard = Shard(folder, self.shape, self._stored)
        except DamagedShardError:
            self.damaged += 1
            # For good, so that it is not met again; what cannot be removed takes room, no more.
            remove_shard(folder)
        except FileNotFoundError:
            pass  # another process has removed it meanwhile
        except OSError:
            self.damaged += 1  # it may be readable another time
        else:
            # A row that was damaged and is written anew is in two shards: the later one counts.
            with self._places_lock:
                self._places.update((id, (shard, number)) for number, id in enumerate(shard.ids))
                self._shards.add(shard)
                if wanted:
                    self._wanted.add(shard)

    def __contains__(self, id: bytes) -> bool:
        """Tell whether the row of that id can be read.

        Where there is no room for more rows, shards of which none was asked for leave first.
        """
        place = self._places.get(id)
        if place is not None:
            self._wanted.add(place[0])
        return place is not None

    def in_order(self, ids: Sequence[bytes]) -> list[int]:
        """Return the numbers of those of `ids` that can be read, as their rows lie on the disk.

        As for `in`, their shards are taken for asked for.
        """
        places = {i: self._places.get(id) for i, id in enumerate(ids) if id in self}
        there = {i: (place[0].folder.name, place[1]) for i, place in places.items() if place}
        return sorted(there, key=lambda i: there[i])

    def read(self, ids: Sequence[bytes], out: NDArray[Any]) -> NDArray[np.bool_]:
        """Read rows into the first places of `out`.

        Args:
            ids: Of the rows.
            out: `[at least len(ids), *shape]`, contiguous, of the table's dtype; where a row
                cannot be read its content is undefined.

        Returns:
            `[len(ids)]`, true for the rows that were read; the others are absent, or they were
            found damaged or removed and have become absent.
        """
        rows = self._bytes_of(ids, out)
        wanted: defaultdict[Shard, list[tuple[int, int]]] = defaultdict(list)
        for i, id in enumerate(ids):
            if (place := self._places.get(id)) is not None:
                shard, number = place
                wanted[shard].append((number, i))
        found = np.zeros(len(ids), np.bool_)
        for shard, places in wanted.items():
            places.sort()  # a disk that spins goes one way
            try:
                intact = shard.read([number for number, _ in places], [rows[i] for _, i in places])
            except FileNotFoundError:  # it has been removed
                with self._places_lock:
                    self._forget_shard(shard)
                continue
            for (number, i), is_intact in zip(places, intact, strict=True):
                found[i] = is_intact
                if not is_intact:
                    self._forget(ids[i], (shard, number))
        return found

    def _forget(self, id: bytes, place: tuple[Shard, int]) -> None:
        with self._places_lock:
            if self._places.get(id) == place:  # else another thread was quicker
                del self._places[id]
                self.damaged += 1

    def _forget_shard(self, shard: Shard) -> None:
        """Let a shard's rows be absent; to be called with the lock of the places."""
        for id in [id for id, (place, _) in self._places.items() if place is shard]:
            del self._places[id]
        self._shards.discard(shard)

    def append(self, ids: Sequence[bytes], rows: NDArray[Any]) -> None:
        """Write the rows whose ids the table lacks; `flush` makes them readable.

        Args:
            ids: Of the rows.
            rows: `[len(ids), *shape]`, contiguous, of the table's dtype.

        Raises:
            CacheError: If the disk refuses, when all rows since the last `flush`, or since the last
                complete shard, are lost; or if they exceed the limit, when those before are kept.
        """
        contents = self._bytes_of(ids, rows)
        with self._writer_lock:
            try:
                for id, row in zip(ids, contents[: len(ids)], strict=True):
                    if id not in self._places:
                        self._write(id, row)
            except OSError as error:
                self._fail(error)

    def flush(self) -> None:
        """Make the rows appended so far readable, by this process and by those to come.

        Raises:
            CacheError: If the disk refuses; these rows are lost.
        """
        with self._writer_lock:
            try:
                self._complete_shard()
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """Flush, and let other processes remove the table.

        Raises:
            CacheError: If the disk refuses the rows that were not yet flushed.
        """
        try:
            self.flush()
        finally:
            self._let_go()

    def _write(self, id: bytes, row: Row) -> None:
        if self._writer is None:
            self._other_bytes = size_of(self._root)
            self._writer = ShardWriter(self.folder, self.shape, self._stored)
        if id in self._writer:
            return
        if self._limit_bytes is not None:
            self._ensure_room(self._writer, self._limit_bytes)
        self._writer.add(id, row)
        if len(self._writer) * self._row_bytes >= SHARD_BYTES:
            self._complete_shard()

    def _ensure_room(self, writer: ShardWriter, limit_bytes: int) -> None:
        """Make room for one more row."""
        own_bytes = shard_bytes(len(writer) + 1, self._row_bytes)
        if self._other_bytes + own_bytes <= limit_bytes:
            return
        written = size_of(writer.folder)
        make_room(self._root, limit_bytes - own_bytes + written, keep=self.folder)
        self._other_bytes = size_of(self._root) - written
        if self._other_bytes + own_bytes > limit_bytes:
            for table in (self, *self._beside):
                table._drop_unwanted(self._other_bytes + own_bytes - limit_bytes)
                self._other_bytes = size_of(self._root) - written
        if self._other_bytes + own_bytes > limit_bytes:
            self._complete_shard()
            raise CacheError(
                f"{self._root} may take {format_bytes(limit_bytes)}, and"
                f" {format_bytes(size_of(self._root))} are taken by what is, or may be, in use: no"
                f" further row of {format_bytes(self._row_bytes)} fits.\n"
                "Give a larger --cache-size, or run `vgg-jax cache clear`, which spares what is"
                " in use."
            )

    def _drop_unwanted(self, count: int) -> None:
        """Remove shards with `count` bytes in all, if there are so many, the oldest first.

        They are this table's, of other pictures, which another process that has it open may want.
        """
        if self._held is None:
            return
        with self._places_lock, alone(self._held) as is_alone:
            if not is_alone:
                return
            shards = self._shards - self._wanted
            for shard in sorted(shards, key=lambda shard: shard.written):
                if count <= 0:
                    break
                count -= size_of(shard.folder)
                self._forget_shard(shard)
                remove_shard(shard.folder)

    def _complete_shard(self) -> None:
        if self._writer is None:
            return
        if len(self._writer):
            self._open_shard(self._writer.complete(), wanted=True)
        else:
            self._writer.discard()
        self._writer = None

    def _bytes_of(self, ids: Sequence[bytes], rows: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the rows as bytes, `[n, bytes of a row]`, sharing their memory."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape or len(rows) < len(ids):
            raise ValueError(
                f"An array of {rows.dtype} {list(rows.shape)} was given for {len(ids)} rows of"
                f" {self.dtype} {list(self.shape)}."
            )
        if not rows.flags.c_contiguous:
            raise ValueError("The array must be contiguous; pass it through np.ascontiguousarray.")
        for id in ids:
            if len(id) != ID_BYTES:
                raise ValueError(f"An id is {len(id)} bytes long, but must be {ID_BYTES}.")
        return rows.reshape(len(rows), math.prod(self.shape)).view(np.uint8)

    def _fail(self, error: OSError) -> NoReturn:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None
        raise CacheError(
            f"{error.filename or self.folder} cannot be used: {error.strerror or error}.\n"
            f"Make room, set the permissions there, or name another folder by {CACHE_VARIABLE}."
        ) from error

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _description(
    settings: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "settings": dict(settings),
        "shape": list(shape),
        "dtype": dtype.name,
        "stored_as": _stored_as(dtype).str,
    }


def _stored_as(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")
