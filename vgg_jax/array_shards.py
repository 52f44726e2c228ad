"""Shards: files of equal-shaped rows, each row with its id and a checksum.

A shard is a folder that appears whole and never changes: `rows.npy` `[n, *shape]`, and `index.npy`
`[n]` with the id and the checksum of each row. NumPy can read both; nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ID_BYTES = 16
PARTIAL_PREFIX = ".partial-"  # of what is being written
ROWS_FILE, INDEX_FILE = "rows.npy", "index.npy"
# The checksum is over the id, too, so that no row is ever taken for another one.
INDEX_DTYPE = np.dtype([("id", "u1", (ID_BYTES,)), ("crc32", "<u4")])
_HEADER_BYTES = 256

DType = np.dtype[Any]
Row = NDArray[np.uint8]  # the bytes of a row, [row_bytes(shape, dtype)]


class DamagedShardError(Exception):
    """A shard is not what was once written; its rows are lost."""


class Shard:
    """A complete shard.

    Attributes:
        folder: Where it is.
        ids: Of its rows, in order.
        written: When it was written, in seconds since 1970.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DType) -> None:
        """Read the index of the shard in that folder, whose rows must have that shape and dtype.

        Raises:
            DamagedShardError: If it is not what a `ShardWriter` wrote.
            FileNotFoundError: If it has been removed.
            OSError: If it cannot be read.
        """
        self.folder = folder
        self._path = folder / ROWS_FILE
        self._row_bytes = row_bytes(shape, dtype)
        try:
            index = (folder / INDEX_FILE).read_bytes()
            with self._path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
                self.written = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError as error:
            if not folder.exists():
                raise
            raise DamagedShardError(f"{error.filename} is missing") from error
        count, rest = divmod(len(index) - _HEADER_BYTES, INDEX_DTYPE.itemsize)
        # Headers are compared, not parsed: there is only one way in which they are written.
        if rest or count < 0 or index[:_HEADER_BYTES] != _header((count,), INDEX_DTYPE):
            raise DamagedShardError(f"{folder / INDEX_FILE} is damaged")
        if header != _header((count, *shape), dtype):
            raise DamagedShardError(f"{self._path} is damaged")
        entries = np.frombuffer(index, INDEX_DTYPE, offset=_HEADER_BYTES)
        self.ids = [id.tobytes() for id in entries["id"]]
        self._checksums: list[int] = entries["crc32"].tolist()

    def read(self, numbers: Sequence[int], rows: Sequence[Row]) -> list[bool]:
        """Fill `rows` with the shard's rows of these numbers; returns which of them are intact.

        Raises:
            FileNotFoundError: If the shard has been removed.
        """
        # Not a memory map: where the disk fails, or the file was cut, a map kills the process by
        # SIGBUS, but a read fails. The file is opened for each call, since threads cannot share a
        # position in it and some systems allow few open files; that costs some microseconds.
        try:
            with self._path.open("rb") as file:
                if hasattr(os, "posix_fadvise"):
                    self._read_ahead(file.fileno(), numbers)
                return [
                    self._read_row(file, number, row)
                    for number, row in zip(numbers, rows, strict=True)
                ]
        except FileNotFoundError:
            raise
        except OSError:
            return [False] * len(numbers)

    def _read_ahead(self, descriptor: int, numbers: Sequence[int]) -> None:
        """Let the disk read on while a row is copied and checked."""
        if len(numbers) > 1 and [*numbers] == [*range(numbers[0], numbers[-1] + 1)]:
            # The system does better than if it were told row by row, and what it reads beyond them
            # is likely to be wanted, too.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return
        for number in numbers:
            start = self._start(number)
            os.posix_fadvise(descriptor, start, self._row_bytes, os.POSIX_FADV_WILLNEED)

    def _read_row(self, file: BufferedReader, number: int, row: Row) -> bool:
        try:
            file.seek(self._start(number))
            filled = file.readinto(row.data)
        except OSError:
            return False  # the rows beside it may be readable
        return filled == len(row) and _checksum(self.ids[number], row) == self._checksums[number]

    def _start(self, number: int) -> int:
        return _HEADER_BYTES + number * self._row_bytes


class ShardWriter:
    """A shard that is being written; every method may raise OSError.

    Attributes:
        folder: Where it is until it is complete.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DType) -> None:
        """Begin a shard in the folder of a table."""
        self.folder = folder / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"
        self._shape, self._dtype = shape, dtype
        self._checksums: dict[bytes, int] = {}
        self.folder.mkdir()
        self._rows = (self.folder / ROWS_FILE).open("wb")
        self._rows.write(_header((0, *shape), dtype))  # the number of rows is yet unknown

    def __contains__(self, id: bytes) -> bool:
        """Tell whether the row of that id has been added."""
        return id in self._checksums

    def __len__(self) -> int:
        """Return how many rows have been added."""
        return len(self._checksums)

    def add(self, id: bytes, row: Row) -> None:
        """Write a row."""
        self._rows.write(row.data)
        self._checksums[id] = _checksum(id, row)

    def complete(self) -> Path:
        """Let the shard appear; returns its folder."""
        count = len(self._checksums)
        entries = np.empty(count, INDEX_DTYPE)
        entries["id"] = np.frombuffer(b"".join(self._checksums), np.uint8).reshape(count, ID_BYTES)
        entries["crc32"] = list(self._checksums.values())
        index = _header((count,), INDEX_DTYPE) + entries.tobytes()
        (self.folder / INDEX_FILE).write_bytes(index)
        self._rows.seek(0)
        self._rows.write(_header((count, *self._shape), self._dtype))
        self._rows.close()
        # No fsync: what a power failure leaves half written has not its checksum. The name begins
        # with the time so that of two shards with the same row the later one is known.
        name = f"{time.time_ns():020}-{uuid.uuid4().hex[:12]}"
        return self.folder.rename(self.folder.with_name(name))

    def discard(self) -> None:
        """Remove what was written, as far as the disk lets it."""
        with suppress(OSError):  # it writes what is buffered first, to a disk that may be full
            self._rows.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_shard(folder: Path) -> None:
    """Remove a shard, as far as the disk lets it."""
    # Renamed first, so that nobody who opens it then takes the rest of it for damaged.
    with suppress(OSError):
        aside = folder.rename(folder.with_name(f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"))
        shutil.rmtree(aside, ignore_errors=True)


def row_bytes(shape: tuple[int, ...], dtype: DType) -> int:
    """Return the size of a row in bytes."""
    return math.prod(shape) * dtype.itemsize


def shard_bytes(rows: int, row_bytes: int) -> int:
    """Return the size of the files of a shard."""
    return 2 * _HEADER_BYTES + rows * (row_bytes + INDEX_DTYPE.itemsize)


def rows_in(shard: Path) -> int:
    """Return the number of rows of the shard in that folder, judged by the size of its index."""
    index_bytes = (shard / INDEX_FILE).stat().st_size
    return max(index_bytes - _HEADER_BYTES, 0) // INDEX_DTYPE.itemsize


def _checksum(id: bytes, row: Row) -> int:
    return zlib.crc32(row.data, zlib.crc32(id))


def _header(shape: tuple[int, ...], dtype: DType) -> bytes:
    """Return the header of an .npy file of version 1.0, always of the same length."""
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    text_bytes = _HEADER_BYTES - 10
    text = repr(described).encode("ascii").ljust(text_bytes - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + text_bytes.to_bytes(2, "little") + text
