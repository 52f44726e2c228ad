"""Options of plugins whose defaults changed after a training: the run keeps what it had."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vgg_jax import load_classifier, train
from vgg_jax.augment import presets
from vgg_jax.augment.geometric import Rotation
from vgg_jax.cli.app import app
from vgg_jax.errors import ConfigError, RunError
from vgg_jax.progress import Progress
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.workflows.train import Run

PACKAGE = """
import dataclasses
import jax
from flax import nnx
from vgg_jax.api import PixelAugmentation


class Narrow(nnx.Module):
    def __init__(
        self, feature_shape, num_classes, *, rngs, units: int = 4, name: str | None = None
    ):
        self.hidden = nnx.Linear(feature_shape[-1], units, rngs=rngs)
        self.logits = nnx.Linear(units, num_classes, rngs=rngs)

    def __call__(self, features):
        return self.logits(nnx.relu(self.hidden(features.mean((1, 2)))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dim(PixelAugmentation):
    strength: float = 0.5
    shares: tuple[float, ...] = dataclasses.field(default_factory=lambda: (1.0, 0.5))

    def apply(self, key, image):
        return image * (1 - self.strength * self.shares[1] * jax.random.uniform(key))


def pair(*, strength: float = 0.4):
    return Dim(strength=strength), Dim(strength=0.2)
"""
AUGMENT = ("dim", "keras", "pair", "dim:strength=0.3")


class Warnings(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def version(installed, tmp_path, monkeypatch):
    """Install a version of a package whose code has some words changed."""

    def install(number: str, *changes: tuple[str, str]) -> None:
        source = PACKAGE
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        for folder in tmp_path.glob("shades*.dist-info"):
            shutil.rmtree(folder)
        module = f"shades_{zlib.crc32(source.encode())}"  # Python imports a name once
        (tmp_path / f"{module}.py").write_text(source)
        installed("shades", number, {"narrow": f"{module}:Narrow"})
        folder = tmp_path / f"shades-{number}.dist-info"
        with (folder / "entry_points.txt").open("a") as file:
            file.write(f"[vgg_jax.augmentations]\ndim = {module}:Dim\npair = {module}:pair\n")

    return install


def begun(options, path: Path, epochs: int = 1, augment: tuple[str, ...] = AUGMENT) -> Run:
    chosen = {**options, "head": "narrow", "augment": augment, "epochs": epochs}
    return train(**chosen, run=str(path))


def change_augmentations(run: Path, change) -> None:
    record = json.loads((run / "run.json").read_text())
    for plugin in record["plugins"][1:]:
        change(plugin)
    (run / "run.json").write_text(json.dumps(record))


def test_a_resumed_run_keeps_the_defaults_it_began_with(options, version, tmp_path, monkeypatch):
    version("1.0")
    whole, part = begun(options, tmp_path / "whole", 2), begun(options, tmp_path / "part")
    written = (part.path / "config.toml").read_text()
    version(
        "1.1",
        ("units: int = 4", "units: int = 6"),
        ("strength: float = 0.5", "strength: float = 0.9"),
        ("(1.0, 0.5)", "(1.0, 0.6)"),
        ("strength: float = 0.4", "strength: float = 0.6"),
        ("strength=0.2", "strength=0.1"),
    )
    monkeypatch.setattr(presets, "keras", lambda: (Rotation(degrees=10),))
    warnings = Warnings()
    resumed = train(run=str(part.path), resume=True, epochs=2, progress=warnings)
    assert [m.loss for m in resumed.history] == [m.loss for m in whole.history]
    narrow, dim, keras, pair, last = warnings.lines
    assert "The head 'narrow' of shades 1.1 has other defaults than 1.0" in narrow
    assert "units was 4, is 6 now. What the run had is used." in narrow
    assert "strength was 0.5, is 0.9 now; shares was [1.0,0.5], is [1.0,0.6] now" in dim
    assert "'keras'" in keras
    assert keras.count("vgg-jax/rotation:degrees=") == 2
    assert "strength was 0.4, is 0.6 now; it was shades/dim:strength=0.4" in pair
    assert "strength" not in last.partition("shares")[0]  # it was given
    assert (part.path / "config.toml").read_text() == written.replace("epochs = 1", "epochs = 2")


def test_the_command_that_made_a_run_goes_on_with_it_after_an_update(options, version, tmp_path):
    version("1.0")
    path = begun(options, tmp_path / "run", augment=("dim",)).path
    version("1.1", ("strength: float = 0.5", "strength: float = 0.9"))
    with pytest.raises(ConfigError, match=r"--augment .*strength=0.9.* differs"):
        train(run=str(path), resume=True, epochs=2, augment=("dim:strength=0.9",))
    resumed = train(run=str(path), resume=True, epochs=2, augment=("dim",), head="narrow")
    assert len(resumed.history) == 2


def test_a_head_is_rebuilt_as_it_was(options, photos, version, tmp_path):
    version("1.0")
    path = begun(options, tmp_path / "run", augment=()).path
    version("1.1", ("units: int = 4", "units: int = 6"))
    assert load_classifier(path).module.head.hidden.kernel.shape[1] == 4  # pyright: ignore
    for arguments in (["evaluate", path], ["predict", path, next(photos.rglob("*.png"))]):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        assert result.stderr.count("units was 4, is 6 now") == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("units", "size"), "no option named 'units'"),
        (("name: str | None = None", "name: str | None = 'x'"), "narrow:name=None cannot be typed"),
    ],
)
def test_defaults_that_cannot_be_given_any_more_are_refused(
    change, reason, options, version, tmp_path
):
    version("1.0")
    path = begun(options, tmp_path / "run", augment=()).path
    version("1.1", change)
    with pytest.raises(RunError, match=rf"'narrow' of shades 1.0.* of 1.1.*{reason}") as refused:
        load_classifier(path)
    assert str(refused.value).endswith("Install the one it had: pip install shades==1.0")


def test_runs_that_recorded_only_what_was_typed_go_on(options, version, tmp_path):
    version("1.0")
    path = begun(options, tmp_path / "run", augment=("keras", "dim:strength=0.3")).path

    def as_formerly(plugin) -> None:
        plugin.pop("stands_for", None)
        plugin["options"] = {"strength": 0.3} if plugin["name"] == "dim" else {}
        plugin["contract"] = 1

    change_augmentations(path, as_formerly)
    warnings = Warnings()
    assert len(train(run=str(path), resume=True, epochs=2, progress=warnings).history) == 2
    assert warnings.lines == []


def test_a_record_brings_no_code_of_its_own(options, version, tmp_path):
    version("1.0")
    path = begun(options, tmp_path / "run", augment=("keras",)).path
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    made = [{"ref": f"{tmp_path / 'evil.py'}#Evil", "options": {}}]
    change_augmentations(path, lambda plugin: plugin.update(stands_for=made))
    with pytest.raises(RunError, match=r"evil.py#Evil is no installed augmentation"):
        train(run=str(path), resume=True, epochs=2, allow_local_code=True)
    assert not (tmp_path / "ran").exists()
    assert RunFolder(path).read_config().augment == ("keras",)  # which only a training needs
