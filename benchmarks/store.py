"""How fast kept features are read, none of them in memory, beside plain sequential reading.

Run by bench.py, in a process of its own; the argument is a folder on the disk to be measured.
"""

from __future__ import annotations

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
from vgg_jax.heap import keep_freed_memory
from vgg_jax.training.kept_rows import InMemory
from vgg_jax.training.rows import DeviceRows, DiskRows
from vgg_jax.training.steps import data_mesh

HERE = Path(__file__).parent
RUN = f"import sys; sys.path.insert(0, {str(HERE)!r}); import store; store.main()"
SHAPE = (14, 14, 512)  # what conv5_1 gets of a picture of 224 pixels: 401,408 bytes
ROWS, BATCH, ROUNDS = 1250, 20, 24


def reading(folder: Path) -> Iterator[dict[str, Any]]:
    """Write half a gigabyte of rows, and read it in ways that take turns."""
    found = measure(RUN, folder)
    yield {**json.loads(found.output.splitlines()[-1]), "others_cores": found.others_cores}


def main() -> None:
    """Measure in the folder that the command line names; prints MB/s, medians."""
    keep_freed_memory()  # as a training does
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
        drawn = [ids[i] for i in np.random.default_rng(1).permutation(ROWS)]
        in_order = [drawn[i] for i in table.in_order(drawn)]
        files = sorted(table.folder.rglob("rows.npy"))
        ways: dict[str, Callable[[], None]] = {
            "sequential_1_mb": lambda: read_sequentially(files, 1_000_000),
            "sequential_8_mb": lambda: read_sequentially(files, 8_000_000),
            "random_1_thread": lambda: read_rows(table, drawn, BATCH, 1),
            "random_4_threads": lambda: read_rows(table, drawn, BATCH, 4),
            "in_order_4_threads": lambda: read_rows(table, in_order, BATCH // 4, 4),
            "into_memory": lambda: read_into_memory(table, drawn),
        }
        # In turns and in many orders: what comes first finds less memory ready for use.
        for _ in range(ROUNDS):
            for way in rng.permutation([*ways]).tolist():
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


def read_into_memory(table: ArrayTable, ids: list[bytes]) -> None:
    """Read all rows as a training does that has room for them: in order, and into that room."""
    names = np.frombuffer(b"".join(ids), np.uint8).reshape(ROWS, -1)
    memory = DeviceRows(data_mesh(), ROWS, SHAPE, np.dtype("f4"))
    with closing(InMemory(memory, lambda rows: rows, DiskRows(data_mesh(), table, names))) as kept:
        kept.load(BATCH, BATCH)
        if not kept.has(np.arange(ROWS)).all():
            raise RuntimeError("A row was not read.")


def read_rows(table: ArrayTable, ids: list[bytes], at_once: int, threads: int) -> None:
    """Read rows, some at once."""
    batches = [ids[first : first + at_once] for first in range(0, len(ids), at_once)]
    out = [np.empty((at_once, *SHAPE), np.float32) for _ in range(threads)]

    def read(numbers: range, out: np.ndarray) -> bool:
        return all(table.read(batches[number], out).all() for number in numbers)

    shares = [range(first, len(batches), threads) for first in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        if not all(pool.map(read, shares, out)):
            raise RuntimeError("A row was not read.")
