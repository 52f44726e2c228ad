"""Tables of kept rows: what is written is read, by threads and processes at once."""

from __future__ import annotations

import json
import os
import threading
from contextlib import closing

import ml_dtypes
import numpy as np
import pytest
from table_files import (
    HEADER_BYTES,
    ROW_BYTES,
    SHAPE,
    fill,
    id_of,
    numbers_read,
    open_table,
    some_rows,
    start_python,
    wait_for_line,
)

from vgg_jax import array_store
from vgg_jax.array_shards import INDEX_FILE, PARTIAL_PREFIX, ROWS_FILE
from vgg_jax.array_store import ArrayTable
from vgg_jax.table_folders import shard_folders, tables


def test_rows_are_read_by_any_later_process(tmp_path):
    fill(tmp_path, 1, 2, 3)
    fill(tmp_path, 4)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 4, 9, 2, 1, 2) == {1, 2, 4}
        assert id_of(3) in table
        assert id_of(9) not in table
        assert table.damaged == 0


def test_rows_are_readable_once_flushed_or_once_the_shard_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(array_store, "SHARD_BYTES", 2 * ROW_BYTES)
    with closing(open_table(tmp_path)) as table:
        table.append(*some_rows(1))
        assert numbers_read(table, 1) == set()
        table.append(*some_rows(1, 2, 3))
        assert numbers_read(table, 1, 2, 3) == {1, 2}
        table.flush()
        assert numbers_read(table, 1, 2, 3) == {1, 2, 3}
    assert len(shard_folders(table.folder)) == 2


def test_a_row_is_written_once(tmp_path):
    fill(tmp_path, 1, 1, 2)
    folder = fill(tmp_path, 2, 1)
    (shard,) = shard_folders(folder)
    assert (shard / ROWS_FILE).stat().st_size == HEADER_BYTES + 2 * ROW_BYTES


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
@pytest.mark.parametrize(
    ("numbers", "advice"),
    [
        ((3, 1, 4, 2), [(0, 0, "SEQUENTIAL")]),  # one after the other in the file
        ((5, 2), [(1, 1, "WILLNEED"), (4, 1, "WILLNEED")]),
        ((3,), [(2, 1, "WILLNEED")]),
    ],
)
def test_the_system_is_told_what_will_be_read(tmp_path, monkeypatch, numbers, advice):
    fill(tmp_path, 1, 2, 3, 4, 5)
    told = []
    names = {os.POSIX_FADV_SEQUENTIAL: "SEQUENTIAL", os.POSIX_FADV_WILLNEED: "WILLNEED"}

    def advise(file: int, start: int, count: int, how: int) -> None:
        row = max(start - HEADER_BYTES, 0) // ROW_BYTES
        told.append((row, count // ROW_BYTES, names[how]))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, *numbers) == {*numbers}
    assert told == advice


def test_numpy_reads_the_files(tmp_path):
    (shard,) = shard_folders(fill(tmp_path, 1, 2))
    for mmap_mode in (None, "r"):
        rows = np.load(shard / ROWS_FILE, mmap_mode=mmap_mode)
        assert isinstance(rows, np.memmap) == (mmap_mode == "r")
        np.testing.assert_array_equal(rows, some_rows(1, 2)[1])
    index = np.load(shard / INDEX_FILE)
    assert [entry.tobytes() for entry in index["id"]] == [id_of(1), id_of(2)]


def test_no_rows_are_no_trouble(tmp_path):
    with closing(open_table(tmp_path)) as table:
        table.append([], np.zeros((0, *SHAPE), np.float32))
        table.flush()
        assert table.read([], np.zeros((0, *SHAPE), np.float32)).shape == (0,)
    assert not shard_folders(table.folder)
    assert tables(tmp_path)[0].rows == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_any_dtype_and_shape(dtype, shape, tmp_path):
    rows = np.random.default_rng(0).integers(0, 99, (3, *shape)).astype(dtype)
    ids = [id_of(i) for i in range(3)]
    for _ in range(2):
        with closing(ArrayTable(tmp_path, {}, shape, np.dtype(dtype))) as table:
            table.append(ids, rows)
            table.flush()
            out = np.zeros_like(rows)
            assert table.read(ids, out).all()
            np.testing.assert_array_equal(out, rows)
    (folder,) = tmp_path.iterdir()
    description = json.loads((folder / "table.json").read_text())
    assert description["dtype"] == np.dtype(dtype).name
    assert description["shape"] == list(shape)


def test_a_table_is_found_by_all_that_describes_it(tmp_path):
    folders = {
        ArrayTable(tmp_path, settings, shape, np.dtype(dtype)).folder
        for settings, shape, dtype in [
            ({"a": 1, "b": 2}, (2,), "f4"),
            ({"b": 2, "a": 1}, (2,), "f4"),
            ({"a": 1, "b": 3}, (2,), "f4"),
            ({"a": 1, "b": 2}, (3,), "f4"),
            ({"a": 1, "b": 2}, (2,), "u4"),
        ]
    }
    assert len(folders) == 4


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        ([id_of(1)], np.zeros((1, 3, 5)), r"float64 \[1, 3, 5\] was given for 1 rows"),
        ([id_of(1)], np.zeros((1, 5, 3), np.float32), r"float32 \[1, 5, 3\]"),
        ([id_of(1)], np.zeros((0, 3, 5), np.float32), "for 1 rows"),
        ([id_of(1)], np.zeros((1, 5, 3), np.float32).swapaxes(1, 2), "contiguous"),
        ([b"short"], np.zeros((1, 3, 5), np.float32), "5 bytes long, but must be 16"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(ids, rows, message, tmp_path):
    with closing(open_table(tmp_path)) as table:
        for method in (table.append, table.read):
            with pytest.raises(ValueError, match=message):
                method(ids, rows)


def test_several_threads_read_and_write_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(array_store, "SHARD_BYTES", 3 * ROW_BYTES)
    failures: list[BaseException] = []
    with closing(open_table(tmp_path)) as table:

        def work(first: int) -> None:
            try:
                for number in range(first, first + 20):
                    table.append(*some_rows(number))
                    numbers_read(table, *range(50))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        table.flush()
        assert numbers_read(table, *range(60)) == set(range(50))
        assert table.damaged == 0


def test_two_processes_write_at_once(tmp_path):
    processes = [
        start_python(
            tmp_path,
            "from test_array_store import *",
            "array_store.SHARD_BYTES = 10 * ROW_BYTES",
            "table = open_table(root)",
            "print('open', flush=True); input()",
            f"for number in range({first}, {first + 200}):",
            "    table.append(*some_rows(number))",
            "table.close()",
        )
        for first in (0, 100)
    ]
    for process in processes:
        wait_for_line(process, "open")
    for process in processes:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, *range(310)) == set(range(300))
        assert table.damaged == 0
    assert not list(table.folder.glob(f"{PARTIAL_PREFIX}*"))


def test_a_killed_process_leaves_nothing_but_complete_shards(tmp_path):
    process = start_python(
        tmp_path,
        "from test_array_store import *",
        "array_store.SHARD_BYTES = 10 * ROW_BYTES",
        "table = open_table(root)",
        "table.append(*some_rows(*range(15)))",
        "print('written', flush=True); input()",
    )
    wait_for_line(process, "written")
    with closing(open_table(tmp_path)) as table:  # the other one is still writing
        assert numbers_read(table, *range(15)) == set(range(10))
        assert len(list(table.folder.glob(f"{PARTIAL_PREFIX}*"))) == 1
    process.kill()
    process.communicate()
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, *range(15)) == set(range(10))
        assert not list(table.folder.glob(f"{PARTIAL_PREFIX}*"))
        assert table.damaged == 0
