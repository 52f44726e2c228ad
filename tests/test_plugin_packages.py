"""The packages under plugins/: what they are made of, what they import, and that they train."""

from __future__ import annotations

import ast
import hashlib
import tomllib
from pathlib import Path

import pytest

from vgg_jax import train
from vgg_jax.errors import OptionError
from vgg_jax.plugin_packages import plugin_packages
from vgg_jax.plugins import find_plugin, list_plugins
from vgg_jax.training.run_folder import RunFolder

FOLDERS = sorted(Path(__file__).parents[1].glob("plugins/vgg-jax-*"))


def imported(file: Path) -> set[str]:
    """Return the modules of ours that a file imports, whether at its head or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "vgg_jax" else {node.module}
    return {name for name in found if name.split(".")[0] == "vgg_jax"}


def entry_points(folder: Path) -> list[tuple[str, str]]:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return [(group, name) for group, names in project["entry-points"].items() for name in names]


def test_there_are_four():
    assert [folder.name for folder in FOLDERS] == [
        "vgg-jax-albumentations",
        "vgg-jax-attention-head",
        "vgg-jax-mixup",
        "vgg-jax-randaugment",
    ]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_packages_import_what_plugins_may_rely_on(folder):
    sources, tests = list(folder.glob("src/**/*.py")), list(folder.glob("tests/test_*.py"))
    assert sources
    assert tests
    for file in sources:
        assert imported(file) == {"vgg_jax.api"}, file
    for file in tests:
        assert imported(file) <= {"vgg_jax.api", "vgg_jax.testing"}, file
        assert "vgg_jax.testing" in imported(file), file


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_packages_are_whole_and_installed(folder):
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    readme = (folder / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert project["name"] == folder.name
    assert f"pip install {folder.name}" in readme
    for group, name in entry_points(folder):
        kind = "head" if group == "vgg_jax.heads" else "augmentation"
        plugin = find_plugin(kind, f"{folder.name}/{name}")
        assert (plugin.version, plugin.problem) == (project["version"], "")
        assert f"`{name}`" in readme or f"--head {name}" in readme


def test_no_two_packages_claim_a_name():
    names = [(plugin.kind, plugin.name) for plugin in list_plugins()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("folder", "about"), [("odd-1.0.dist-info", "METADATA"), ("odd.egg-info", "PKG-INFO")]
)
def test_a_package_that_is_installed_anew_is_read_anew(folder, about, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "entry_points.txt").write_text("[vgg_jax.heads]\nodd = odd:Head\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for version in ("1.0", "1.0.1"):
        (tmp_path / folder / about).write_text(f"Name: odd\nVersion: {version}\n")
        found = {package.name: package.version for package in plugin_packages()}
        assert found["odd"] == version


def test_they_train_together(options, tmp_path):
    augment = ("albumentations", "horizontal-flip", "randaugment:operations=1", "mixup:alpha=0.4")
    chosen = {**options, "epochs": 1, "head": "attention:heads=2", "augment": augment}
    run = train(**chosen, run=str(tmp_path / "run"))
    packages = [plugin["package"] for plugin in RunFolder(run.path).read_record().plugins]
    assert packages == [
        "vgg-jax-attention-head",
        "vgg-jax-albumentations",
        "vgg-jax",
        "vgg-jax-randaugment",
        "vgg-jax-mixup",
    ]
    assert 0 <= run.history[0].accuracy <= 1


@pytest.mark.parametrize("typed", [True, False])
def test_a_pipeline_file_that_changed_is_noticed_on_resume(typed, options, tmp_path):
    file = tmp_path / "pipeline.json"
    saved = '{"transform": {"__class_fullname__": "InvertImg", "p": 0.5}}'  # as Albumentations does
    file.write_text(saved)
    sha256 = hashlib.sha256(saved.encode()).hexdigest()
    option = f',sha256="{sha256}"' if typed else ""  # else the run records it by itself
    chosen = {**options, "augment": (f'albumentations:file="{file}"{option}',)}
    run = train(**{**chosen, "epochs": 1}, run=str(tmp_path / "run"))
    file.write_text(saved.replace("0.5", "0.6"))
    with pytest.raises(OptionError, match=f"not the file that was meant.*{sha256}"):
        train(run=str(run.path), resume=True, epochs=2)
