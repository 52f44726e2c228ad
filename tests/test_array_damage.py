"""Tables of kept rows: what is damaged or cannot be written is noticed, told and mended."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from mounts import in_shell, needs_mounts
from table_files import (
    HEADER_BYTES,
    ROW_BYTES,
    SETTINGS,
    SHAPE,
    fill,
    id_of,
    numbers_read,
    open_table,
    some_rows,
    start_python,
)

from vgg_jax.array_shards import INDEX_FILE, ROWS_FILE, remove_shard
from vgg_jax.errors import CacheError
from vgg_jax.table_folders import shard_folders, tables


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
    assert table.damaged == 0
    with pytest.raises(CacheError, match="No such file or directory"):
        table.flush()
    with pytest.raises(CacheError, match="No such file or directory"):
        table.append(*some_rows(3))
    table.close()
    fill(tmp_path, 4)
    with closing(open_table(tmp_path)) as table:
        assert numbers_read(table, 1, 2, 3, 4) == {4}


def test_a_shard_that_another_process_removes_is_gone_and_not_damaged(tmp_path):
    fill(tmp_path, 1, 2)
    first, second = shard_folders(fill(tmp_path, 3))
    with closing(open_table(tmp_path)) as table:
        remove_shard(first)
        assert numbers_read(table, 1, 2, 3) == {3}
        assert id_of(2) not in table
        assert table.damaged == 0
        table.append(*some_rows(1, 2))
        table.flush()
        assert numbers_read(table, 1, 2, 3) == {1, 2, 3}
    assert second.exists()
    assert not list(table.folder.glob(".*"))


@pytest.mark.parametrize("file", [INDEX_FILE, ROWS_FILE])
def test_a_shard_that_is_removed_while_the_table_is_opened_is_not_damaged(
    file, tmp_path, monkeypatch
):
    fill(tmp_path, 1)
    first, _ = shard_folders(fill(tmp_path, 2))
    opening = io.open

    def open_late(path, *args, **others):
        if path == first / file:
            remove_shard(first)
        return opening(path, *args, **others)

    monkeypatch.setattr(io, "open", open_late)
    with closing(open_table(tmp_path)) as table:
        assert not first.exists()
        assert numbers_read(table, 1, 2) == {2}
        assert table.damaged == 0


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
        "from test_array_damage import *",
        "from vgg_jax.array_shards import PARTIAL_PREFIX",
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
        assert numbers_read(table, *range(110)) == set(range(1, 100))


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
            "from test_array_damage import *",
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
