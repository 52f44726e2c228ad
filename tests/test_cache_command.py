"""`vgg-jax cache`: what is kept is shown, and only what comes again by itself is removed."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from test_cli import invoke

from vgg_jax.array_store import ArrayTable
from vgg_jax.cache import size_of
from vgg_jax.table_folders import FEATURES
from vgg_jax.weights.download import public_files

DOWNLOADED = next(iter(public_files().values())).file


def open_table(cache: Path, **settings) -> ArrayTable:
    return ArrayTable(cache / FEATURES, settings, (4,), np.dtype(np.float32))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder that holds something of everything, and files of the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VGG_JAX_CACHE", str(folder))
    for path in (
        "compiled/one-program",
        f"downloads/{DOWNLOADED}",
        "weights/imagenet/metadata.json",
        "weights/imagenet/arrays/0",
        "data/demo-v1/train/0.jpg",
        "downloads/holiday.jpg",
        "weights/mine/notes.txt",
        "data/mine/0.jpg",
        "features/mine.txt",
        "mine.txt",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(bytes(1000))
    with closing(
        open_table(folder, boundary="conv5_1", prefix="0123456789abcdef" * 2, x=1)
    ) as table:
        table.append([bytes(15) + bytes([i]) for i in range(3)], np.zeros((3, 4), np.float32))
    return folder


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_info(cache):
    shown = invoke("cache", "info")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert str(cache) in lines[0]
    assert lines[2][:4] == ["features", "boundary=conv5_1", "prefix=01234567", "3"]
    assert lines[2][-1] == "now"
    assert [" ".join(words[:2]) for words in lines[3:]] == [
        "compiled programs",
        "downloaded weights",
        "converted weights",
        "the demo's",
        "total 5.8",
    ]
    assert shown.stderr == ""
    result = json.loads(invoke("cache", "info", "--json").stdout)
    (table,) = result["tables"]
    assert table["rows"] == 3
    assert table["bytes"] == size_of(Path(table["path"]))
    assert table["settings"] == {"boundary": "conv5_1", "prefix": "0123456789abcdef" * 2, "x": 1}
    assert {one["what"]: one["bytes"] for one in result["files"]} == {
        "compiled programs": 1000,
        "downloaded weights": 1000,
        "converted weights": 2000,
        "the demo's pictures": 1000,
    }
    assert result["bytes"] == table["bytes"] + 5000


def test_a_folder_that_does_not_exist_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "none"))
    assert json.loads(invoke("cache", "info", "--json").stdout)["bytes"] == 0
    assert "0 bytes" in invoke("cache", "info").stdout
    cleared = invoke("cache", "clear")
    assert cleared.stdout == ""
    assert "nothing to remove" in cleared.stderr
    assert not (tmp_path / "none").exists()


def test_clear_removes_what_comes_again_by_itself(cache):
    before = files_in(cache)
    dry = invoke("cache", "clear", "--dry-run")
    assert "Nothing was removed" in dry.stderr
    assert files_in(cache) == before
    assert invoke("cache", "clear").stdout == dry.stdout
    removed = before - files_in(cache)
    assert {path.split("/")[0] for path in removed} == {"features", "compiled"}
    assert len(removed) == 5
    assert "features/mine.txt" not in removed
    assert (cache / "compiled").is_dir()  # a running training may be about to write there


def test_clear_all_leaves_only_what_vgg_jax_did_not_make(cache):
    result = json.loads(invoke("cache", "clear", "--all", "--json").stdout)
    assert result["removed"]["bytes"] > 5000
    assert files_in(cache) == {
        "downloads/holiday.jpg",
        "weights/mine/notes.txt",
        "data/mine/0.jpg",
        "features/mine.txt",
        "mine.txt",
    }


def test_tables_in_use_are_kept_and_named(cache):
    with closing(open_table(cache, boundary="head")) as table:
        assert "in use" in invoke("cache", "info").stdout
        cleared = invoke("cache", "clear")
        assert f"In use, and kept: {table.folder}" in cleared.stderr
        assert "boundary=head" not in cleared.stdout
        assert table.folder.is_dir()
        again = json.loads(invoke("cache", "clear", "--json").stdout)
        assert [one["path"] for one in again["in_use"]] == [str(table.folder)]
        assert again["removed"]["tables"] == []
    invoke("cache", "clear")
    assert not table.folder.exists()


def test_what_cannot_be_removed_is_named(cache, monkeypatch):
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    failed = invoke("cache", "clear", code=1)
    assert f"{cache / 'compiled' / 'one-program'} cannot be removed: Perm" in failed.stderr
    assert failed.stdout == ""


def test_the_command_imports_no_jax(cache):
    code = (
        "import sys\nfrom vgg_jax.cli.app import app\n"
        "try: app(['cache', 'info'])\nexcept SystemExit as end: assert not end.code\n"
        "sys.exit(str({'jax', 'h5py', 'requests'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "features" in done.stdout
