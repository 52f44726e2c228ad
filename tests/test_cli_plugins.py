"""`vgg-jax plugins list` and `show`, and --debug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from vgg_jax.cli.app import app

HEAD = '''
"""A module that says so when it is imported."""
print("imported", flush=True)


class Quiet:
    """Do nothing, briefly.

    Of no use.
    """

    def __init__(self, feature_shape, num_classes, *, rngs, weight: float = 0.5, name: str):
        """Build it.

        Args:
            feature_shape: Ignored.
            num_classes: Ignored.
            rngs: Ignored.
            weight: Of nothing, in [0, 1].
            name: Of anything.
        """
'''


TALKATIVE = """
import os, subprocess
from flax import nnx

print("imported")
os.write(1, b"imported, too\\n")
subprocess.run(["echo", "imported by another process"], check=True)


class Head(nnx.Module):
    def __init__(self, feature_shape, num_classes, *, rngs):
        print("built")
        self.logits = nnx.Linear(feature_shape[-1], num_classes, rngs=rngs)

    def __call__(self, features):
        print("traced")
        return self.logits(features.mean((1, 2)))
"""


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plugins", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def quiet(installed, tmp_path):
    """A package with a head that can be imported and one that cannot."""
    (tmp_path / "quiet_module.py").write_text(HEAD)
    entries = {"quiet": "quiet_module:Quiet", "gone": "no_such_module_anywhere:Head"}
    installed("quiet-heads", "0.2", entries)
    (tmp_path / "quiet_heads-0.2.dist-info" / "METADATA").write_text(
        "Name: quiet-heads\nVersion: 0.2\nSummary: Heads that do nothing\n"
    )
    return tmp_path


def rows(output: str, package: str = "quiet-heads") -> dict[str, dict[str, str]]:
    found = [row for row in json.loads(output)["plugins"] if row["package"] == package]
    return {row["name"]: row for row in found}


@pytest.mark.usefixtures("quiet")
def test_the_list_is_sorted_and_imports_nothing():
    output = run("list", "--json")
    assert "imported" not in output
    keys = [(row["kind"], row["name"]) for row in json.loads(output)["plugins"]]
    assert keys == sorted(keys)
    found = rows(output)
    assert found["quiet"]["summary"] == "Heads that do nothing"
    assert (found["gone"]["version"], found["gone"]["problem"]) == ("0.2", "")
    assert output == run("list", "--json")


def test_one_kind_can_be_asked_for():
    assert {
        row["kind"] for row in json.loads(run("list", "--kind", "head", "--json"))["plugins"]
    } == {"head"}


def test_a_plugin_that_cannot_be_used_is_marked_without_importing_it(installed, monkeypatch):
    installed("future-heads", "3.1", {"next": "future:Head"}, group="vgg_jax.heads.v2")
    assert "BROKEN: it is written for version 2 of the plugin contract" in run("list")
    monkeypatch.setenv("VGG_JAX_PLUGINS", "")
    installed("other-heads", "1.0", {"other": "other:Head"})
    assert "VGG_JAX_PLUGINS does not name its package" in run("list")


@pytest.mark.usefixtures("quiet")
def test_a_plugin_shows_its_purpose_and_its_options():
    text = run("show", "quiet")
    assert "quiet: head, of quiet-heads 0.2" in text
    assert "Do nothing, briefly.\n\nOf no use." in text
    assert "weight: a number, default 0.5\n      Of nothing, in [0, 1]." in text
    assert "name: a word, must be given\n      Of anything." in text
    described = json.loads(run("show", "quiet", "--json"))
    assert (described["package"], described["what"]) == ("quiet-heads", "head")
    assert described["options"][0]["range"] == "in [0, 1]"


def test_a_preset_shows_what_it_stands_for():
    text = run("show", "keras")
    assert "keras: preset, of vgg-jax" in text
    assert "--augment rotation:degrees=40" in text
    assert "--augment horizontal-flip:probability=0.5" in text


def test_a_plugin_in_a_file_is_shown_as_such(quiet):
    file = quiet / "quiet_module.py"
    assert f"Quiet: head, of {file}" in run("show", f"{file}#Quiet")


def test_a_broken_plugin_is_named_with_its_cause_and_its_traceback_on_demand(quiet):
    environment = {**os.environ, "PYTHONPATH": str(quiet)}
    program = [str(Path(sys.executable).with_name("vgg-jax"))]

    def stderr(*arguments: str) -> str:
        done = subprocess.run(
            [*program, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done
        return done.stderr

    short = stderr("summary", "--head", "gone")
    assert short.startswith("Error: The head 'gone' of quiet-heads 0.2 cannot be loaded from")
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in short
    assert "Traceback" not in short
    long = stderr("summary", "--head", "gone", "--debug")
    assert "Traceback" in long
    assert "importlib" in long
    assert "vgg_jax.errors.PluginError: The head 'gone' of quiet-heads 0.2" in long


def test_what_a_plugin_prints_is_no_part_of_a_result(options, photos, tmp_path):
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    config = tmp_path / "config.toml"
    config.write_text(tomli_w.dumps({**options, "epochs": 1}))
    head = f"{tmp_path / 'talkative.py'}#Head"
    chosen = ["--config", str(config), "--head", head, "--run", str(tmp_path / "run")]
    trained = subprocess.run(
        [sys.executable, "-m", "vgg_jax", "train", *chosen, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["run"] == str(tmp_path / "run")
    printed = ("imported", "imported, too", "imported by another process", "built", "traced")
    assert set(printed) <= set(trained.stderr.splitlines())
    for command in (["evaluate"], ["predict", next(photos.rglob("*.png"))]):
        words = [command[0], tmp_path / "run", *command[1:], "--allow-local-code", "--json"]
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)
        assert "built" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "dense265"], "No plugin named 'dense265'. Did you mean 'dense256'?"),
        (["show", "zoom", "--kind", "head"], "No head named 'zoom'"),
        (["show", "zoom", "--preview", "x.jpg"], "belong together"),
        (["show", "linear", "--preview", "x.jpg", "--out", "y.png"], "is a head"),
        (["show", "none.py#Head"], "none.py cannot be read"),
    ],
)
def test_wrong_input_says_what_would_be_right(arguments, message):
    result = CliRunner().invoke(app, ["plugins", *arguments])
    assert result.exit_code == 1
    assert message in result.output
