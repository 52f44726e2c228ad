"""Folders of tables: which leave first, which stay, what is removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from table_files import (
    fill,
    id_of,
    numbers_read,
    open_table,
    some_rows,
    start_python,
    wait_for_line,
)

from vgg_jax import table_folders
from vgg_jax.array_store import ArrayTable
from vgg_jax.cache import size_of
from vgg_jax.errors import CacheError
from vgg_jax.table_folders import remove, shard_folders, tables


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
    other = start_python(
        tmp_path,
        "from test_table_folders import *",
        "t = table_of(root, 'a')",
        "print('open', flush=True); input()",
    )
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
        kept = numbers_read(table, *range(100))
        assert 1 < len(kept) < 100  # what fitted
        assert kept == set(range(len(kept)))
    other.communicate("\n")


def test_what_no_open_table_was_asked_for_leaves_at_last(tmp_path):
    taken = make_tables(tmp_path, "a", "b")
    opened: list[ArrayTable] = []
    for name in ("a", "b"):
        opened.append(table_of(tmp_path, name, limit_bytes=taken, beside=opened))
    a, b = opened
    with closing(a), closing(b):
        assert id_of(0) in b
        b.append(*some_rows(20))
        b.flush()
        assert numbers_read(b, 0, 20) == {0, 20}
        assert not shard_folders(a.folder)
        assert size_of(tmp_path) <= taken


def test_what_another_process_may_have_been_asked_for_stays(tmp_path):
    make_tables(tmp_path, "a")
    limit = size_of(tmp_path) + 100
    other = start_python(
        tmp_path,
        "from test_table_folders import *",
        "t = table_of(root, 'a')",
        "print('open', flush=True); input()",
        "print(sorted(numbers_read(t, *range(10))), t.damaged)",
    )
    wait_for_line(other, "open")
    with closing(table_of(tmp_path, "a", limit_bytes=limit)) as table:
        with pytest.raises(CacheError, match="taken by what is, or may be, in use"):
            table.append(*some_rows(*range(100, 110)))
        stdout, stderr = other.communicate("\n")
        assert stdout == f"{[*range(10)]} 0\n", stderr
        assert not remove(table.folder)  # to be refused has not let go of it
        assert table_folders.is_held(table.folder)
        table.append(*some_rows(*range(100, 110)))
        table.flush()
        assert numbers_read(table, *range(100, 110)) == {*range(100, 110)}
        assert numbers_read(table, *range(10)) == set()
        assert not remove(table.folder)
        assert size_of(tmp_path) <= limit
    assert remove(table.folder)


def test_a_limit_below_a_single_row_keeps_nothing(tmp_path):
    with (
        closing(open_table(tmp_path, limit_bytes=50)) as table,
        pytest.raises(CacheError, match=r"may take 50 bytes, .* no further row of 60 bytes fits"),
    ):
        table.append(*some_rows(1))
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
