"""Kept features of one split in one view: in memory, perhaps on disk too, or on disk alone.

On disk they are as the prefix gives them, so that heads which pool differently find the same; in
memory as `Steps.pool` leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from vgg_jax.errors import CacheError
from vgg_jax.training.rows import DiskRows, Rows

Pool = Callable[[jax.Array], jax.Array]
Warn = Callable[[CacheError], None]


class KeptRows(Rows, Protocol):
    """Rows that take features as the prefix gives them, and give them pooled.

    What the disk does not take costs computing it again, nothing else: it is told, once, and no
    method raises.

    Attributes:
        in_memory: Whether they are all held there, so that many can be had at once.
    """

    in_memory: bool

    def prefetch(self, positions: np.ndarray, rows: int) -> None:
        """Make ready for a `get` of these positions."""
        ...

    def flush(self) -> None:
        """Let later trainings have what was put."""
        ...

    def stop_writing(self) -> None:
        """Write no more, and go on with what is there."""
        ...

    def close(self) -> None:
        """End what goes on in the background."""
        ...


class InMemory:
    """Kept in memory, and on disk as long as that can be written to."""

    in_memory = True

    def __init__(
        self,
        memory: Rows,
        pool: Pool,
        disk: DiskRows | None = None,
        warn: Warn = lambda error: None,
    ) -> None:
        """Keep in `memory` and, if given, on `disk`; `warn` is told if that fails."""
        self._memory, self._pool, self._disk, self._warn = memory, pool, disk, warn

    def load(self, batch_size: int, rows: int, order: np.ndarray | None = None) -> None:
        """Bring what is on disk into the memory, in batches.

        By default in the order in which it lies there, which is the fastest. Those at the positions
        `order` must be there.
        """
        if self._disk is None:
            return
        stored = self._disk.in_order() if order is None else order
        pieces = [stored[i : i + batch_size] for i in range(0, len(stored), batch_size)]
        for i, piece in enumerate(pieces):
            if i + 1 < len(pieces):
                self._disk.prefetch(pieces[i + 1], rows)
            features = self._disk.get(piece, rows)
            if features is not None:
                self._memory.put(piece, self._pool(features))
                continue
            for alone in piece[self._disk.has(piece), None]:  # not the damaged ones of the batch
                features = self._disk.get(alone, rows)
                if features is not None:
                    self._memory.put(alone, self._pool(features))

    def has(self, positions: np.ndarray) -> np.ndarray:
        """As in `Rows`."""
        return self._memory.has(positions)

    def put(self, positions: np.ndarray, values: jax.Array) -> None:
        """As in `Rows`."""
        self._memory.put(positions, self._pool(values))
        self._write(lambda disk: disk.write(positions, values))

    def get(self, positions: np.ndarray, rows: int) -> jax.Array | None:
        """As in `Rows`."""
        return self._memory.get(positions, rows)

    def prefetch(self, positions: np.ndarray, rows: int) -> None:
        """As in `KeptRows`: there is nothing to do."""

    def flush(self) -> None:
        """As in `KeptRows`."""
        self._write(DiskRows.flush)

    def stop_writing(self) -> None:
        """As in `KeptRows`."""
        self.close()

    def close(self) -> None:
        """As in `KeptRows`; what is in memory stays."""
        if self._disk is not None:
            self._disk.close()
            self._disk = None

    def _write(self, write: Callable[[DiskRows], None]) -> None:
        if self._disk is not None:
            try:
                write(self._disk)
            except CacheError as error:
                self.close()
                self._warn(error)


class OnDisk:
    """Kept on disk alone; where that can no longer be written, what it has is."""

    in_memory = False

    def __init__(self, disk: DiskRows, pool: Pool, warn: Warn = lambda error: None) -> None:
        """Keep on `disk`; `warn` is told if that fails."""
        self._disk, self._pool, self._warn = disk, pool, warn
        self.has, self.prefetch = disk.has, disk.prefetch
        self.stop_writing, self.close = disk.stop_writing, disk.close

    def put(self, positions: np.ndarray, values: jax.Array) -> None:
        """As in `Rows`."""
        self._write(lambda: self._disk.put(positions, values))

    def get(self, positions: np.ndarray, rows: int) -> jax.Array | None:
        """As in `Rows`."""
        features = self._disk.get(positions, rows)
        return None if features is None else self._pool(features)

    def flush(self) -> None:
        """As in `KeptRows`."""
        self._write(self._disk.flush)

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except CacheError as error:
            self.stop_writing()
            self._warn(error)
