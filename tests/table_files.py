"""A small table of kept rows, written and read by tests."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

from vgg_jax.array_store import ArrayTable

SHAPE = (3, 5)
ROW_BYTES = 60
HEADER_BYTES = 256
SETTINGS = {"boundary": "conv5_1", "image_size": 224}


def open_table(root: Path, settings=SETTINGS, **options) -> ArrayTable:
    return ArrayTable(root, settings, SHAPE, np.dtype(np.float32), **options)


def id_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def some_rows(*numbers: int) -> tuple[list[bytes], np.ndarray]:
    rows = [np.random.default_rng(i).standard_normal(SHAPE, np.float32) for i in numbers]
    return [id_of(i) for i in numbers], np.stack(rows)


def fill(root: Path, *numbers: int, **options) -> Path:
    """Write rows into a table and close it; returns its folder."""
    with closing(open_table(root, **options)) as table:
        table.append(*some_rows(*numbers))
    return table.folder


def numbers_read(table: ArrayTable, *numbers: int) -> set[int]:
    """Return which rows can be read, having checked that they are what was written."""
    ids, expected = some_rows(*numbers)
    out = np.full((len(ids) + 1, *SHAPE), np.nan, np.float32)
    found = table.read(ids, out)
    np.testing.assert_array_equal(out[:-1][found], expected[found])
    assert np.isnan(out[-1]).all()
    return {number for number, is_found in zip(numbers, found, strict=True) if is_found}


def start_python(root: Path, *lines: str) -> subprocess.Popen[str]:
    """Start another process that runs these lines, the first of which imports a test's names."""
    code = [
        "import resource",
        "from pathlib import Path",
        f"root = Path({str(root)!r})",
        *lines,
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == line + "\n"
