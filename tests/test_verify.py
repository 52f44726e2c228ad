"""Folders of converted weights that are checked again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from golden_sources import SOURCES, convert_golden
from weight_files import write_published_h5

from vgg_jax.cache import cache_folder
from vgg_jax.config import TrainConfig
from vgg_jax.errors import VggJaxError, WeightsError
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Hyperparameters, TrainState
from vgg_jax.weights.metadata import read_metadata, seal_metadata
from vgg_jax.weights.source import PREPROCESSINGS, SourceWeights
from vgg_jax.weights.store import load_weights, save_weights
from vgg_jax.workflows import verify
from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.verify import verify_weights


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "narrow.h5"
    write_published_h5(path, 1 / 32)
    return path


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> Path:
    return convert_weights(source, tmp_path_factory.mktemp("verify") / "narrow").folder


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    """The converted weights, to be spoilt; their source is where it was."""
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def test_what_was_just_converted_passes(converted, source):
    result = verify_weights(converted)
    assert (result.folder, result.arrays, result.source) == (converted, 26, source)
    assert result.digest == load_weights(converted).digest
    assert result.proof is not None
    assert result.proof.largest.error < 1e-5
    assert json.loads((converted / "proof.json").read_text())["errors"] == result.proof.errors


@pytest.mark.parametrize("name", ["classifier.keras", "binary.h5"])
def test_the_run_that_a_classifier_became_passes(name, tmp_path_factory):
    run = convert_golden(name, tmp_path_factory).folder
    result = verify_weights(run)
    assert result.folder == run / "backbone"
    assert result.arrays == (30 if name == "classifier.keras" else 28)
    assert result.source == SOURCES / name
    assert result.proof is not None
    assert "logits" in result.proof.errors


def flip_a_bit(folder: Path) -> None:
    """Flip one in the middle of the largest file of the arrays."""
    path = max((folder / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_metadata(edit: Callable[[dict], object], seal: bool = False) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "metadata.json"
        metadata = json.loads(path.read_text())
        edit(metadata)
        path.write_text(json.dumps(seal_metadata(metadata) if seal else metadata))

    return spoil


def remove_arrays(folder: Path) -> None:
    for path in (folder / "arrays").rglob("d/*"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip_a_bit, r"is damaged: the (kernel|bias) of \w+ (does not match|cannot be read)"),
        (remove_arrays, r"is damaged: the (kernel|bias) of conv1_1 cannot be read"),
        (lambda folder: shutil.rmtree(folder / "arrays"), r"its arrays cannot be read"),
        (edit_metadata(lambda m: m.update(mean=[0, 0, 0])), r"was changed: its digest does not"),
        (edit_metadata(lambda m: m["layers"].popitem()), r"was changed: its digest does not"),
        (edit_metadata(lambda m: m.update(digest="0" * 64)), r"was changed: its digest does not"),
        (edit_metadata(lambda m: m.update(vgg_jax_version="9")), r"was changed: its digest does"),
        (edit_metadata(lambda m: m["source"].update(file="x.h5")), r"metadata.json was changed"),
        (edit_metadata(lambda m: m["source"].update(path="/x.h5")), r"metadata.json was changed"),
        (edit_metadata(lambda m: m["source"].update(sha256="0" * 64)), r"json was changed"),
        (edit_metadata(lambda m: m["files"].update({"proof.json": "0" * 64})), r"was changed"),
        (edit_metadata(lambda m: m.update(seal="0" * 64)), r"metadata.json was changed"),
        (edit_metadata(lambda m: m.pop("seal")), r"metadata.json is damaged: 'seal'"),
        (edit_metadata(lambda m: m.pop("files")), r"metadata.json was changed"),
        (edit_metadata(lambda m: m.update(files={"../x": ""}), seal=True), r"json is damaged"),
        (edit_metadata(lambda m: m.update(files=[]), seal=True), r"metadata.json is damaged"),
        (edit_metadata(lambda m: m.pop("source"), seal=True), r"metadata.json is damaged"),
        (edit_metadata(lambda m: m["source"].pop("sha256"), seal=True), r"json is damaged"),
        (edit_metadata(lambda m: m["source"].update(sha256=3), seal=True), r"json is damaged"),
        (lambda folder: (folder / "proof.json").write_text("{}"), r"proof.json is not what was"),
        (lambda folder: (folder / "proof.md").write_text(""), r"proof.md is not what was"),
        (lambda folder: (folder / "proof.json").unlink(), r"its proof.json is missing"),
        (lambda folder: (folder / "proof.md").unlink(), r"its proof.md is missing"),
        (lambda folder: (folder / "metadata.json").write_text("{"), r"metadata.json is damaged"),
        (lambda folder: (folder / "metadata.json").unlink(), r"it has no metadata.json"),
        (lambda folder: shutil.rmtree(folder), r"No such folder of converted weights"),
    ],
)
def test_a_folder_that_was_changed_is_refused(copy, spoil, message):
    spoil(copy)
    with pytest.raises(WeightsError, match=message) as caught:
        verify_weights(copy)
    assert str(caught.value).count("\n") < 3


def test_a_folder_from_before_seals_passes(copy):
    def unseal(metadata: dict) -> None:
        del metadata["seal"], metadata["files"]

    edit_metadata(unseal)(copy)
    assert verify_weights(copy).proof is not None


def forge(folder: Path, **changes: Any) -> None:
    """Replace what decides the outputs, with new checksums and a new digest that fit."""
    weights, metadata = load_weights(folder, with_top=True), read_metadata(folder)
    described = metadata["source"]
    values: dict[str, Any] = {
        name: getattr(weights, name) for name in ("layers", "top", "head", "width")
    }
    values |= {"mean": weights.mean, "scale": weights.scale}
    forged = SourceWeights(
        **(values | changes),
        layout=described["layout"],
        source=described["file"],
        sha256=described["sha256"],
        path=described["path"],
        preprocessing=described["preprocessing"],
    )
    shutil.rmtree(folder)
    save_weights(forged, folder)


def layers_of(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return dict(load_weights(folder).layers)


def swap_channels(folder: Path) -> None:
    layers = layers_of(folder)
    kernel, bias = layers["conv1_1"]
    layers["conv1_1"] = np.ascontiguousarray(kernel[:, :, ::-1]), bias
    forge(folder, layers=layers)


def change_one_value(folder: Path) -> None:
    layers = layers_of(folder)
    kernel, bias = layers["conv4_2"]
    kernel = kernel.copy()
    kernel[1, 1, 0, 0] += 0.5
    layers["conv4_2"] = kernel, bias
    forge(folder, layers=layers)


FORGERIES = [
    swap_channels,
    change_one_value,
    lambda folder: forge(folder, mean=(123.68, 116.779, 103.0)),
    lambda folder: forge(folder, scale=PREPROCESSINGS["torch"].scale),
]


@pytest.mark.parametrize("attack", FORGERIES)
def test_a_consistent_forgery_is_caught_by_the_proof(copy, attack):
    attack(copy)
    load_weights(copy)  # every checksum fits
    with pytest.raises(WeightsError, match=r"copy does not hold what .*narrow.h5 does"):
        verify_weights(copy)


def test_a_checkpoint_that_is_not_the_classifier_is_caught(tmp_path, tmp_path_factory):
    converted = convert_golden("classifier.keras", tmp_path_factory).folder
    run = RunFolder(Path(shutil.copytree(converted, tmp_path / "run")))
    restored = run.checkpoints.restore(0)
    run.checkpoints.close()
    restored.trained["head/logits/bias"] += 1
    shutil.rmtree(run.path / "checkpoints")
    forged = Checkpoints(run.path / "checkpoints")
    numbers = Hyperparameters.of(TrainConfig().resolved())
    trained = {path: jnp.asarray(value) for path, value in restored.trained.items()}
    state = TrainState(trained, {}, jnp.zeros((), jnp.uint32), numbers)
    forged.save_epoch(restored.position, state)
    forged.close()
    with pytest.raises(WeightsError, match=r"its classifier is not the one in .*backbone"):
        verify_weights(run.path)


def test_without_the_source_checksums_are_all_there_is(copy, monkeypatch):
    edit_metadata(lambda m: m["source"].update(path="/nowhere/narrow.h5"), seal=True)(copy)
    result = verify_weights(copy)
    assert (result.arrays, result.source, result.proof) == (26, None, None)
    flip_a_bit(copy)
    with pytest.raises(WeightsError, match=r"is damaged"):
        verify_weights(copy)


def test_the_source_is_found_among_the_downloads_and_the_demo(copy, source, tmp_path, monkeypatch):
    edit_metadata(lambda m: m["source"].update(path="/nowhere/narrow.h5"), seal=True)(copy)
    monkeypatch.setattr(verify, "demo_file", lambda: source)
    assert verify_weights(copy).source == source
    monkeypatch.undo()
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    download = cache_folder() / "downloads" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    download.parent.mkdir(parents=True)
    shutil.copy(source, download)
    assert verify_weights(copy).source == download


def test_a_source_that_may_not_be_read_is_as_good_as_gone(copy, source, monkeypatch):
    opened = Path.open

    def refuse(path: Path, *arguments, **options):
        if path == source:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert verify_weights(copy).proof is None
    with pytest.raises(WeightsError, match=r"No weight file that can be read: .*narrow.h5"):
        verify_weights(copy, source)


def test_the_source_can_be_named(copy, source, tmp_path):
    moved = shutil.copy(source, tmp_path / "moved.h5")
    assert verify_weights(copy, moved).source == Path(moved)
    with pytest.raises(WeightsError, match=r"was not converted from .*backbone.h5: .* SHA-256"):
        verify_weights(copy, SOURCES / "backbone.h5")
    with pytest.raises(WeightsError, match=r"No weight file that can be read: .*none.h5"):
        verify_weights(copy, tmp_path / "none.h5")
    with pytest.raises(VggJaxError, match=r"was not converted from .*vgg16_quarter.h5"):
        verify_weights(copy, "demo")
