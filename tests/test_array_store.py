"""Tables of kept rows: what is written is read, what is damaged is noticed and written anew."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from mounts import in_shell, needs_mounts

from vgg_jax import array_store, table_folders
from vgg_jax.array_shards import INDEX_FILE, PARTIAL_PREFIX, ROWS_FILE
from vgg_jax.array_store import ArrayTable
from vgg_jax.cache import size_of
from vgg_jax.errors import CacheError
from vgg_jax.table_folders import remove, shard_folders, tables

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
    """Start another process that runs these lines, with the names of this file."""
    code = [
        "import resource",
        "from test_array_store import *",
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


def test_rows_are_read_by_any_later_process(tmp_path):
    fill(tmp_path, 1, 2, 3)
    fill(tmp_path, 4)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 4, 9, 2, 1, 2) == {1, 2, 4}
        assert table.ids() == {id_of(i) for i in (1, 2, 3, 4)}
        assert len(table) == 4
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


def test_numpy_reads_the_files(tmp_path):
    (shard,) = shard_folders(fill(tmp_path, 1, 2))
    np.testing.assert_array_equal(np.load(shard / ROWS_FILE), some_rows(1, 2)[1])
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


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 4
    file.write_bytes(content)


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


ROWS_START = HEADER_BYTES
SECOND_ENTRY = HEADER_BYTES + 20


@pytest.mark.parametrize(
    ("spoil", "left", "damaged"),
    [
        (lambda s: flip(s / ROWS_FILE, ROWS_START + ROW_BYTES + 7), {1, 3}, 1),
        (lambda s: cut(s / ROWS_FILE, ROWS_START + 2 * ROW_BYTES + 1), {1, 2}, 1),
        (lambda s: cut(s / ROWS_FILE, ROWS_START), set(), 3),
        (lambda s: flip(s / INDEX_FILE, SECOND_ENTRY + 15), {1, 3}, 0),
        (lambda s: flip(s / INDEX_FILE, SECOND_ENTRY + 17), {1, 3}, 1),
        (lambda s: cut(s / INDEX_FILE, SECOND_ENTRY), set(), 1),
        (lambda s: cut(s / INDEX_FILE, 10), set(), 1),
        (lambda s: cut(s / ROWS_FILE, 10), set(), 1),
        (lambda s: (s / INDEX_FILE).unlink(), set(), 1),
        (lambda s: (s / ROWS_FILE).unlink(), set(), 1),
        (lambda s: (s / ROWS_FILE).write_bytes(os.urandom(9999)), set(), 1),
        (lambda s: (s / INDEX_FILE).write_bytes(os.urandom(9999)), set(), 1),
        (lambda s: np.save(s / ROWS_FILE, np.zeros((3, *SHAPE))), set(), 1),
        (lambda s: np.save(s / ROWS_FILE, np.zeros((3, 5, 3), np.float32)), set(), 1),
        (lambda s: np.save(s / INDEX_FILE, np.array([{}]), allow_pickle=True), set(), 1),
    ],
)
def test_what_is_damaged_is_counted_and_written_anew(spoil, left, damaged, tmp_path):
    (shard,) = shard_folders(fill(tmp_path, 1, 2, 3))
    spoil(shard)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2, 3) == left
        assert numbers_read(table, 1, 2, 3) == left
        assert table.damaged == damaged
        table.append(*some_rows(1, 2, 3))
        table.flush()
        assert numbers_read(table, 1, 2, 3) == {1, 2, 3}
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2, 3) == {1, 2, 3}
        assert table.damaged == 0


def test_two_rows_that_change_places_are_noticed(tmp_path):
    (shard,) = shard_folders(fill(tmp_path, 1, 2))
    file = shard / ROWS_FILE
    content = file.read_bytes()
    first, second = content[ROWS_START:][:ROW_BYTES], content[ROWS_START:][ROW_BYTES:]
    file.write_bytes(content[:ROWS_START] + second + first)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2) == set()
        assert table.damaged == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"settings": 3}'])
def test_a_damaged_description_is_written_anew(content, tmp_path):
    folder = fill(tmp_path, 1)
    before = (folder / "table.json").read_bytes()
    (folder / "table.json").write_bytes(content)
    assert tables(tmp_path)[0].settings == {}
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1) == {1}
    assert (folder / "table.json").read_bytes() == before
    assert tables(tmp_path)[0].settings == SETTINGS


def test_a_folder_that_is_deleted_under_a_table_is_survived(tmp_path):
    fill(tmp_path, 1)
    table = open_table(tmp_path)
    table.append(*some_rows(2))
    shutil.rmtree(table.folder)
    assert numbers_read(table, 1, 2) == set()
    with pytest.raises(CacheError, match="No such file or directory"):
        table.flush()
    with pytest.raises(CacheError, match="No such file or directory"):
        table.append(*some_rows(3))
    table.close()
    fill(tmp_path, 4)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2, 3, 4) == {4}


def test_a_disk_that_fails_in_places_costs_the_rows_there(tmp_path, monkeypatch):
    fill(tmp_path, 1, 2, 3)

    class FailingFile(io.BufferedReader):
        def readinto(self, buffer):
            if self.tell() == ROWS_START + ROW_BYTES:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    with closing(open_table(tmp_path)) as table:
        monkeypatch.setattr(Path, "open", lambda path, mode: FailingFile(io.FileIO(path, "r")))
        assert numbers_read(table, 1, 2, 3) == {1, 3}
        assert table.damaged == 1
        monkeypatch.undo()
        assert numbers_read(table, 1, 2, 3) == {1, 3}


def test_a_shard_that_cannot_be_read_is_left_for_another_time(tmp_path, monkeypatch):
    fill(tmp_path, 1)
    fill(tmp_path, 2)
    first, _ = shard_folders(tables(tmp_path)[0].path)
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.parent == first:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2) == {2}
        assert table.damaged == 1
    monkeypatch.undo()
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2) == {1, 2}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"file.* cannot be used: Not a directory") as caught:
        open_table(tmp_path / "file")
    assert "VGG_JAX_CACHE" in str(caught.value)


def test_a_full_disk_is_told_and_the_table_stays_readable(tmp_path):
    """In another process, which may write no file of more than 10 kB."""
    fill(tmp_path, 1)
    process = start_python(
        tmp_path,
        "table = open_table(root)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))",
        "for first in (1, 1001):",
        "    with pytest.raises(CacheError, match='File too large'):",
        "        table.append(*some_rows(*range(first, first + 1000)))",
        "        table.flush()",
        "    assert not list(table.folder.glob(f'{PARTIAL_PREFIX}*'))",
        "    assert numbers_read(table, 1, 2) == {1}",
        "table.append(*some_rows(*range(2, 100)))",
        "table.close()",
    )
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    with closing(open_table(tmp_path)) as table:
        assert len(table) == 99


@needs_mounts
def test_a_disk_without_room_is_told(tmp_path):
    (tmp_path / "disk").mkdir()
    script = """
        mount -t tmpfs -o size=64k tmpfs "$1" || exit 99
        shift; exec "$@"
    """
    code = "\n".join(
        [
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})",
            "from test_array_store import *",
            f"table = open_table(Path({str(tmp_path / 'disk')!r}))",
            "table.append(*some_rows(1))",
            "table.flush()",
            "with pytest.raises(CacheError, match='No space left on device'):",
            "    table.append(*some_rows(*range(2, 5000)))",
            "assert numbers_read(table, 1, 2) == {1}",
            "table.close()",
        ]
    )
    done = in_shell(script, tmp_path / "disk", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


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


def table_of(root: Path, name: str, **options) -> ArrayTable:
    return open_table(root, {"name": name}, **options)


def names_left(root: Path) -> list[str]:
    return [table.settings["name"] for table in tables(root)]


def make_tables(root: Path, *names: str) -> int:
    """Make tables of ten rows, each used later than the one before; returns their bytes."""
    for age, name in enumerate(reversed(names)):
        with closing(table_of(root, name)) as table:
            table.append(*some_rows(*range(10)))
        os.utime(table.folder / "used", (1000 - age, 1000 - age))
    return size_of(root)


def test_the_least_recently_used_tables_leave_first(tmp_path):
    taken = make_tables(tmp_path, "a", "b", "c")
    table_of(tmp_path, "a").close()  # used now
    with closing(table_of(tmp_path, "d", limit_bytes=taken + 100)) as table:
        table.append(*some_rows(1))
        assert names_left(tmp_path) == ["c", "a", "d"]
        table.append(*some_rows(*range(15)))
        assert names_left(tmp_path) == ["a", "d"]
        table.flush()
        assert numbers_read(table, *range(15)) == set(range(15))
    assert size_of(tmp_path) <= taken + 100


def test_tables_in_use_stay(tmp_path):
    taken = make_tables(tmp_path, "a", "b", "c")
    other = start_python(tmp_path, "t = table_of(root, 'a')", "print('open', flush=True); input()")
    wait_for_line(other, "open")
    with (
        closing(table_of(tmp_path, "b")),
        closing(table_of(tmp_path, "d", limit_bytes=taken)) as table,
    ):
        table.append(*some_rows(1))
        assert sorted(names_left(tmp_path)) == ["a", "b", "d"]
        with pytest.raises(CacheError) as caught:
            table.append(*some_rows(*range(100)))
        assert sorted(names_left(tmp_path)) == ["a", "b", "d"]
        assert "--cache-size" in str(caught.value)
        assert "vgg-jax cache clear" in str(caught.value)
        assert 1 < len(table) < 100  # what fitted is kept
        assert numbers_read(table, *range(len(table))) == set(range(len(table)))
    other.communicate("\n")


def test_a_limit_below_a_single_row_keeps_nothing(tmp_path):
    with closing(open_table(tmp_path, limit_bytes=50)) as table:
        with pytest.raises(
            CacheError, match=r"may take 50 bytes, .* no further row of 60 bytes fits"
        ):
            table.append(*some_rows(1))
        assert len(table) == 0
    assert not shard_folders(table.folder)


def test_a_table_that_is_removed_while_it_is_opened_is_made_anew(tmp_path, monkeypatch):
    folder = fill(tmp_path, 1)
    lock, removals = table_folders._lock, iter([True])

    def lock_late(file: int, how: int) -> bool:
        if next(removals, False):
            assert remove(folder)
        return lock(file, how)

    monkeypatch.setattr(table_folders, "_lock", lock_late)
    with closing(open_table(tmp_path)) as table:
        assert len(table) == 0
        table.append(*some_rows(2))
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2) == {2}


def test_only_what_was_meant_is_removed(tmp_path, monkeypatch):
    """Between opening and locking it another process removes the table, a third makes it anew."""
    folder = fill(tmp_path, 1)
    lock, meddled = table_folders._lock, []

    def lock_late(file: int, how: int) -> bool:
        if not meddled:
            meddled.append(True)
            assert remove(folder)
            meddled.append(open_table(tmp_path))
        return lock(file, how)

    monkeypatch.setattr(table_folders, "_lock", lock_late)
    assert not remove(folder)
    monkeypatch.undo()
    with closing(meddled[1]) as table:
        table.append(*some_rows(2))
        table.flush()
        assert numbers_read(table, 1, 2) == {2}
    assert remove(folder)
    assert not remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_all_but_tables_in_use_works(tmp_path, monkeypatch):
    def no_locks(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(table_folders.fcntl, "flock", no_locks)
    taken = make_tables(tmp_path, "a", "b")
    with closing(table_of(tmp_path, "b", limit_bytes=taken)) as table:
        table.append(*some_rows(*range(15)))
        table.flush()
        assert numbers_read(table, *range(15)) == set(range(15))
        assert names_left(tmp_path) == ["b"]


def test_what_an_interrupted_removal_left_goes_first(tmp_path):
    make_tables(tmp_path, "a", "b")
    (tmp_path / ".removed-1").mkdir()
    (tmp_path / ".removed-1" / "rows.npy").write_bytes(bytes(5000))
    with closing(table_of(tmp_path, "c", limit_bytes=size_of(tmp_path))) as table:
        table.append(*some_rows(*range(10)))
        assert names_left(tmp_path) == ["a", "b", "c"]
    assert not (tmp_path / ".removed-1").exists()


def test_importing_brings_no_jax():
    code = "import sys, vgg_jax.array_store; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
