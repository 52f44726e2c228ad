"""Plugins that a run remembers: recorded, missed, refused, copied."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vgg_jax import load_classifier, train
from vgg_jax.cli.app import app
from vgg_jax.errors import ConfigError, PluginError, RunError
from vgg_jax.plugins import find_plugin
from vgg_jax.progress import Progress
from vgg_jax.training.run_folder import RunFolder

CODE = '''
"""A head and an augmentation of one's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vgg_jax.api import PixelAugmentation


class Narrow(nnx.Module):
    """Average, then logits.

    """

    def __init__(self, feature_shape, num_classes, *, rngs: nnx.Rngs, units: int = 4) -> None:
        """Build it.

        Args:
            feature_shape: `(h, w, c)`.
            num_classes: Number of logits.
            units: Of the hidden layer, at least 1.
            rngs: Draws the kernels.
        """
        self.hidden = nnx.Linear(feature_shape[-1], units, rngs=rngs)
        self.logits = nnx.Linear(units, num_classes, rngs=rngs)

    def __call__(self, features):
        return self.logits(nnx.relu(self.hidden(features.mean((1, 2)))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Darken(PixelAugmentation):
    """Make pictures darker."""

    def apply(self, key, image):
        return image * jax.random.uniform(key, (), jnp.float32, 0.5, 1.0)
'''


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("code") / "my_plugins.py"
    file.write_text(CODE)
    return file


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def own(code, options, notes, tmp_path_factory) -> Path:
    """A run whose head and augmentation are in a file; the file is gone since."""
    chosen = {**options, "head": f"{code}#Narrow:units=5", "augment": (f"{code}#Darken",)}
    path = tmp_path_factory.mktemp("runs") / "own"
    run = train(**{**chosen, "epochs": 1}, run=str(path), progress=notes)
    code.unlink()
    return run.path


def with_plugin(run: Path, target: Path, **changes: str) -> Path:
    """Copy a run, its first plugin's record changed."""
    shutil.copytree(run, target)
    record = json.loads((target / "run.json").read_text())
    record["plugins"][0] |= changes
    (target / "run.json").write_text(json.dumps(record))
    return target


def test_plugins_are_recorded_with_their_options(options, tmp_path):
    augment = ("zoom:fraction=0.1", "horizontal-flip", "light")
    chosen = {**options, "epochs": 1, "augment": augment, "head": "gap-mlp:dropout=0.1"}
    run = train(**chosen, run=str(tmp_path / "run"))
    head, zoom, flip, light = RunFolder(run.path).read_record().plugins
    assert head["options"] == {"hidden": [256], "activation": "relu", "norm": "none"} | {
        "dropout": 0.1
    }
    assert (zoom["name"], zoom["package"], zoom["options"]) == (
        "zoom",
        "vgg-jax",
        {"fraction": 0.1},
    )
    assert (flip["name"], flip["contract"]) == ("horizontal-flip", "1")
    assert flip["options"] == {"probability": 0.5}
    assert [made["ref"] for made in light["stands_for"]] == [
        "vgg-jax/crop-resize",
        "vgg-jax/horizontal-flip",
        "vgg-jax/color-jitter",
    ]
    assert light["stands_for"][0]["options"] == {"scale": [0.7, 1.0], "ratio": [3 / 4, 4 / 3]}


def test_a_run_whose_head_is_not_installed_says_what_to_install(run, tmp_path):
    gone = with_plugin(run.path, tmp_path / "run", package="old-heads", version="1.4")
    with pytest.raises(RunError, match=r"'dense256' of old-heads 1.4, which is not installed"):
        load_classifier(gone)
    with pytest.raises(RunError, match=r"pip install old-heads==1.4"):
        load_classifier(gone)


def test_a_head_of_another_major_version_is_refused(run, installed, tmp_path):
    installed("new-heads", "2.0", {"newer": "new:Head"})
    changes = {"name": "newer", "package": "new_heads"}
    same = with_plugin(run.path, tmp_path / "same", version="2.7", **changes)
    assert RunFolder(same).read_config().head == "dense256"
    other = with_plugin(run.path, tmp_path / "other", version="1.4", **changes)
    with pytest.raises(RunError, match=r"new_heads 1.4; 2.0, another major version"):
        load_classifier(other)


def test_augmentations_are_needed_for_training_only(options, run, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(run.path, target)
    record = json.loads((target / "run.json").read_text())
    gone = {"kind": "augmentation", "name": "fog", "package": "weather", "version": "0.2"}
    record["plugins"].append(gone)
    (target / "run.json").write_text(json.dumps(record))
    config = (target / "config.toml").read_text()
    (target / "config.toml").write_text(re.sub(r"augment = \[.*?\]", 'augment = ["fog"]', config))
    assert load_classifier(target).class_names == run_classes(run)
    with pytest.raises(RunError, match=r"augmentation 'fog' of weather 0.2, which is not inst"):
        train(run=str(target), resume=True, epochs=3)


def run_classes(run) -> tuple[str, ...]:
    return RunFolder(run.path).read_record().class_names


def test_a_name_that_was_claimed_since_stays_the_runs_own(run, installed):
    installed("latecomer", "1.0", {"dense256": "late:Head"})
    assert RunFolder(run.path).read_config().head == "vgg-jax/dense256"
    assert load_classifier(run.path).class_names == run_classes(run)


def test_code_of_ones_own_is_announced_recorded_and_copied(own, code, notes):
    assert [line for line in notes.lines if line.startswith("Running the code of")] == [
        f"Running the code of the head Narrow in {code}.",
        f"Running the code of the augmentation Darken in {code}.",
    ]
    head, augmentation = RunFolder(own).read_record().plugins
    assert head["options"] == {"units": 5}
    assert (own / head["file"]).read_text() == CODE
    assert head["sha256"] == augmentation["sha256"]
    assert str(code) not in (own / "config.toml").read_text()


@pytest.mark.parametrize("command", ["evaluate", "augment-preview"])
def test_every_command_that_runs_code_of_ones_own_says_so(command, run, photos, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    augment = ["--augment", f"{file}#Darken", "--views", "1"]
    arguments = {
        "evaluate": [str(run.path)],
        "augment-preview": ["--data", str(photos), "--out", str(tmp_path / "grid.png")],
    }
    result = CliRunner().invoke(app, [command, *arguments[command], *augment])
    assert result.exit_code == 0, result.output
    assert f"Running the code of the augmentation Darken in {file}." in result.stderr


def test_code_of_a_run_is_run_only_when_allowed(own, tmp_path):
    with pytest.raises(RunError, match=r"'Narrow'.*would be run.*--allow-local-code"):
        load_classifier(own)
    moved = tmp_path / "moved"
    shutil.copytree(own, moved)
    classifier = load_classifier(moved, allow_local_code=True)
    assert classifier.module.head.hidden.kernel.shape[1] == 5  # pyright: ignore
    images = np.zeros((2, classifier.image_size, classifier.image_size, 3), np.uint8)
    assert classifier.predict(images).shape == (2, 3)


@pytest.mark.parametrize("place", ["the run's own file", "a file elsewhere", "a file outside"])
def test_code_that_the_run_does_not_record_is_never_run(own, place, tmp_path):
    forged, ran = tmp_path / "forged", tmp_path / "ran"
    shutil.copytree(own, forged)
    (tmp_path / "other.py").write_text(f"open({str(ran)!r}, 'w')\n{CODE}")
    own_file = RunFolder(own).read_record().plugins[0]["file"]
    names = {"a file elsewhere": tmp_path / "other.py", "a file outside": "plugins/../../other.py"}
    code = names.get(place, own_file)
    if code == own_file:
        (forged / own_file).write_text((tmp_path / "other.py").read_text())
        record = json.loads((forged / "run.json").read_text())
        (forged / "run.json").write_text(json.dumps({**record, "plugins": []}))
    else:
        config = (forged / "config.toml").read_text()
        (forged / "config.toml").write_text(config.replace(f"{own_file}#N", f"{code}#N"))
    for allowed in (False, True):
        with pytest.raises(RunError, match=r"does not record as the run's own"):
            load_classifier(forged, allow_local_code=allowed)
    assert not ran.exists()


def test_code_that_was_changed_is_refused(own, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(own, changed)
    file = changed / RunFolder(own).read_record().plugins[0]["file"]
    file.write_text(CODE + "\nprint('hello')\n")
    with pytest.raises(RunError, match=r"was changed since the training"):
        load_classifier(changed, allow_local_code=True)
    file.unlink()
    with pytest.raises(RunError, match=r"damaged.*cannot be read"):
        load_classifier(changed, allow_local_code=True)


def test_a_run_with_its_own_code_goes_on(own, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(own, copy)
    with pytest.raises(RunError, match=r"--allow-local-code"):
        train(run=str(copy), resume=True, epochs=2)
    run = train(run=str(copy), resume=True, epochs=2, allow_local_code=True)
    assert len(run.history) == 2


@pytest.mark.parametrize("command", ["evaluate", "predict", "summary"])
def test_commands_ask_before_they_run_code(own, photos, command):
    picture = next(photos.rglob("*.png"))
    arguments = [command, str(own), *([str(picture)] if command == "predict" else [])]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "--allow-local-code" in refused.output
    allowed = CliRunner().invoke(app, [*arguments, "--allow-local-code"])
    assert allowed.exit_code == 0, allowed.output


def test_a_file_that_cannot_be_used_says_why(tmp_path, options):
    file = tmp_path / "mine.py"
    file.write_text("import no_such_module_anywhere\n")
    with pytest.raises(PluginError, match=r"'Head'.*mine.py.*no_such_module_anywhere.*Mend that"):
        train(**{**options, "head": f"{file}#Head"}, run=str(tmp_path / "run"))
    file.write_text("Other = 1\n")
    with pytest.raises(PluginError, match=r"has nothing called 'Head'"):
        find_plugin("head", f"{file}#Head").load()
    with pytest.raises(PluginError, match=r"names no class: write the file, a # and the name"):
        find_plugin("head", f"{file}#")
    with pytest.raises(PluginError, match=r"none.py cannot be read: No such file"):
        train(**{**options, "head": f"{tmp_path / 'none.py'}#Head"})


def test_resuming_does_not_take_another_head(own):
    with pytest.raises(ConfigError, match="--head 'linear' differs"):
        train(run=str(own), resume=True, head="linear", allow_local_code=True)


def test_the_command_that_made_a_run_resumes_it(options, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    chosen = {**options, "head": f"{file}#Narrow:units=5", "augment": (f"{file}#Darken",)}
    run = train(**{**chosen, "epochs": 1}, run=str(tmp_path / "run"))
    assert run.evaluate().examples == 9  # its code has just been run
    again = train(**chosen, run=str(run.path), resume=True, allow_local_code=True)
    assert len(again.history) == 2
    file.write_text(CODE + "# changed since\n")
    with pytest.raises(ConfigError, match=r"--augment .* differs"):
        train(**chosen, run=str(run.path), resume=True, allow_local_code=True)
