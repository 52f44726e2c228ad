"""`vgg-jax plugins new`: its packages pass their own tests, install, and train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vgg_jax.cli.app import app
from vgg_jax.errors import ConfigError
from vgg_jax.workflows.new_plugin import LICENSE_IDS, new_plugin

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        cwd=os.sep,  # not where `import vgg_jax` would find the source
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> list[Path]:
    """An augmentation, with three lines of it edited as docs/plugins.md says, and a head."""
    folder = tmp_path_factory.mktemp("packages")
    cutout = new_plugin("augmentation", "my-cutout", out=folder)
    code = cutout.folder / "src" / cutout.module / "__init__.py"
    text = code.read_text()
    for before, after in (
        ('"""Cover a random square of the picture, sometimes.', '"""Negate a random square.'),
        ("        value: Grey level of the cover, in [0, 1].\n", ""),
        ("    value: float = 0.5\n", ""),
        ('("size", "value", "probability")', '("size", "probability")'),
        ("self.value, image)", "1 - image, image)"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    code.write_text(text)
    test = cutout.folder / "tests" / f"test_{cutout.module}.py"
    edited = test.read_text().replace("size=0.5, value=0.25,", "size=0.5,")
    test.write_text(edited.replace("view == 0.25", "view == 0"))
    return [cutout.folder, new_plugin("head", "my-head", out=folder, license_name="mit").folder]


def test_their_own_tests_pass(packages):
    paths = os.pathsep.join(str(folder / "src") for folder in packages)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *packages]
    assert "4 passed" in run(*command, PYTHONPATH=paths)


def test_they_install_beside_the_program_and_train(packages, photos, tmp_path):
    """Wheels of all three, in an environment of their own; only dependencies are lent to it."""
    wheels = tmp_path / "wheels"
    for folder in (ROOT, *packages):
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
        run(*build, "--outdir", wheels, folder)
    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, *wheels.glob("*.whl"))
    (site,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    lent = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (site / "lent.pth").write_text(f"{lent}\n")  # .pth files in there are not followed
    program = tmp_path / "fresh" / "bin" / "vgg-jax"
    environment = {"PYTHONPATH": ""}
    where = "import vgg_jax; print(vgg_jax.__file__)"
    assert str(site) in run(python, "-c", where, **environment)
    rows = json.loads(run(program, "plugins", "list", "--json", **environment))["plugins"]
    listed = {(row["kind"], row["name"]): row["package"] for row in rows}
    assert listed["augmentation", "my-cutout"] == "vgg-jax-my-cutout"
    assert listed["head", "my-head"] == "vgg-jax-my-head"
    assert "keeps the contract" in run(program, "plugins", "check", "my-cutout", **environment)
    train = [program, "train", "--data", photos, "--weights", "random:0:0.0625", "--json"]
    train += ["--head", "my-head:units=8", "--augment", "my-cutout:size=0.5", "--epochs", "1"]
    train += ["--image-size", "32", "--batch-size", "8", "--run", tmp_path / "run"]
    assert len(json.loads(run(*train, **environment))["epochs"]) == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [plugin["package"] for plugin in record["plugins"]] == [
        "vgg-jax-my-head",
        "vgg-jax-my-cutout",
    ]


@pytest.mark.parametrize("license_name", LICENSE_IDS)
@pytest.mark.parametrize("kind", ["augmentation", "head"])
def test_a_package_has_all_that_it_needs(kind, license_name, tmp_path):
    options: dict[str, Any] = {"license_name": license_name, "author": "A. Name"}
    made = new_plugin(kind, "vgg-jax-odd-1", out=tmp_path, **options)
    assert (made.package, made.name, made.module) == ("vgg-jax-odd-1", "odd-1", "vgg_jax_odd_1")
    written = {str(p.relative_to(made.folder)) for p in made.folder.rglob("*") if p.is_file()}
    assert written == set(made.files)
    project = tomllib.loads((made.folder / "pyproject.toml").read_text())["project"]
    assert project["license"] == LICENSE_IDS[license_name]
    assert list(project["entry-points"].values()) == [{"odd-1": "vgg_jax_odd_1:Odd1"}]
    assert ("A. Name" in (made.folder / "LICENSE").read_text()) == (license_name != "apache-2.0")
    for file in made.files:
        assert "$" not in (made.folder / file).read_text(), file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MyCutout", "write small letters"),
        ("my_cutout", "write small letters"),
        ("../x", "write small letters"),
        (
            "zoom",
            "has an augmentation 'zoom' already; choose another name, such as my-zoom",
        ),
        ("vgg-jax-", "write small letters"),
    ],
)
def test_names_that_cannot_be_used_say_why(name, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        new_plugin("augmentation", name, out=tmp_path)


def test_a_folder_that_exists_is_left_alone(tmp_path):
    first = CliRunner().invoke(app, ["plugins", "new", "head", "mine", "--out", str(tmp_path)])
    assert first.exit_code == 0
    assert "vgg-jax plugins check mine" in first.stdout
    second = CliRunner().invoke(app, ["plugins", "new", "head", "mine", "--out", str(tmp_path)])
    assert second.exit_code == 1
    assert "vgg-jax-mine exists" in second.output


@pytest.mark.parametrize(
    ("kind", "name"), [("head", "none"), ("head", "true"), ("augmentation", "pixel-augmentation")]
)
def test_names_that_python_or_the_interface_has_are_refused(kind, name, tmp_path):
    with pytest.raises(ConfigError, match=f"such as my-{name}"):
        new_plugin(kind, name, out=tmp_path)
    assert list(tmp_path.iterdir()) == []
