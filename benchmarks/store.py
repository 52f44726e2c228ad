"""How fast kept features are read, none of them in memory, beside plain sequential reading.

Run by bench.py, in a process of its own; the argument is a folder on the disk to be measured.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from convert import measure

from vgg_jax.array_store import ArrayTable

HERE = Path(__file__).parent
RUN = f"import sys; sys.path.insert(0, {str(HERE)!r}); import store; store.main()"
SHAPE = (14, 14, 512)  # what conv5_1 gets of a picture of 224 pixels: 401,408 bytes
ROWS, BATCH = 1250, 20


def reading(folder: Path) -> Iterator[dict[str, Any]]:
    """Write half a gigabyte of rows, and read it in ways that take turns."""
    found = measure(RUN, folder)
    yield {**json.loads(found.output.splitlines()[-1]), "others_cores": found.others_cores}


def main() -> None:
    """Measure in the folder that the command line names; prints MB/s, medians."""
    rng = np.random.default_rng(0)
    ids = [rng.bytes(16) for _ in range(ROWS)]
    with closing(ArrayTable(Path(sys.argv[1]) / "features", {}, SHAPE, np.dtype("f4"))) as table:
        rows = rng.standard_normal((BATCH, *SHAPE), np.float32)
        rates: dict[str, list[float]] = {}
        start = time.perf_counter()
        for first in range(0, ROWS, BATCH):
            table.append(ids[first : first + BATCH], rows)
        table.flush()
        rates["write"] = [rate(start)]
        files = sorted(table.folder.rglob("rows.npy"))
        ways: dict[str, Callable[[], None]] = {
            "sequential_1_mb": lambda: read_sequentially(files, 1_000_000),
            "sequential_8_mb": lambda: read_sequentially(files, 8_000_000),
            "random_1_thread": lambda: read_at_random(table, ids, 1),
            "random_4_threads": lambda: read_at_random(table, ids, 4),
        }
        # In turns and in every order: what comes first finds less memory ready for use.
        for order in itertools.permutations(ways, len(ways)):
            for way in order:
                forget(files)
                start = time.perf_counter()
                ways[way]()
                rates.setdefault(way, []).append(rate(start))
    figures = {f"{name}_mb_per_s": statistics.median(values) for name, values in rates.items()}
    print(json.dumps({name: round(value) for name, value in figures.items()}))


def rate(start: float) -> float:
    """Return MB/s of all rows since then."""
    return ROWS * 4 * np.prod(SHAPE) / (time.perf_counter() - start) / 1e6


def forget(files: list[Path]) -> None:
    """Put files out of the memory in which the system keeps what was read."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_sequentially(files: list[Path], size: int) -> None:
    """Read files from start to end, so many bytes at a time, as `dd` does."""
    buffer = bytearray(size)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_at_random(table: ArrayTable, ids: list[bytes], threads: int) -> None:
    """Read all rows by batches in random order."""
    order = np.random.default_rng(1).permutation(len(ids))
    batches = [[ids[i] for i in order[first:][:BATCH]] for first in range(0, len(ids), BATCH)]
    out = [np.empty((BATCH, *SHAPE), np.float32) for _ in range(threads)]

    def read(numbers: range, out: np.ndarray) -> bool:
        return all(table.read(batches[number], out).all() for number in numbers)

    shares = [range(first, len(batches), threads) for first in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        if not all(pool.map(read, shares, out)):
            raise RuntimeError("A row was not read.")
