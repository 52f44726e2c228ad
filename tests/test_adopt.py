"""The run that a classifier of another program becomes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_sources import CLASSES, OUTPUTS, SIDE, SOURCES, convert_golden, golden_arrays
from PIL import Image
from typer.testing import CliRunner
from weight_files import keras_arrays, write_keras_arrays

from vgg_jax import load_classifier
from vgg_jax.cli.app import app
from vgg_jax.errors import ConfigError, RunError, VggJaxError, WeightsError
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.weights.reading import read_weight_file
from vgg_jax.workflows import adopt
from vgg_jax.workflows.adopt import describe_classifier, describe_top
from vgg_jax.workflows.backbone import open_backbone
from vgg_jax.workflows.convert import ConvertResult, convert_weights
from vgg_jax.workflows.evaluate import evaluate
from vgg_jax.workflows.summary import summarise_run
from vgg_jax.workflows.train import train

TRAINED = SOURCES / "classifier.keras"
runner = CliRunner()


@pytest.fixture(scope="module")
def adopted(tmp_path_factory) -> ConvertResult:
    return convert_golden("classifier.keras", tmp_path_factory)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """The golden images as PNG files, one folder a class of `CLASSES`, the last one empty."""
    folder = tmp_path_factory.mktemp("pictures") / "trees"
    for name, image in zip(CLASSES, (*OUTPUTS["images"], OUTPUTS["images"][0]), strict=True):
        (folder / name).mkdir(parents=True)
        Image.fromarray(image).save(folder / name / "picture.png")
    return folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_classifier_becomes_a_run_that_carries_its_backbone(adopted):
    assert adopted.is_run
    assert left(adopted.folder) == ["backbone", "checkpoints", "config.toml", "run.json"]
    run = RunFolder(adopted.folder)
    record, config = run.read_record(), run.read_config()
    assert record.class_names == adopted.class_names == CLASSES
    assert record.converted_from == "classifier.keras"
    assert record.weights == config.weights == str(adopted.folder / "backbone")
    assert record.weights_digest == adopted.digest
    assert (config.head, config.train_from, config.loss) == ("dense256", "head", "categorical")
    assert (config.image_size, config.interpolation) == (SIDE, "nearest")


def test_its_head_is_the_built_in_one_whoever_else_claims_the_name(installed, tmp_path):
    installed("latecomer", "1.0", {"dense256": "late:Head", "linear": "late:Head"})
    options = {"class_names": CLASSES, "image_size": SIDE}
    result = convert_weights(TRAINED, tmp_path / "trees", **options)
    assert RunFolder(result.folder).read_record().plugins[0]["package"] == "vgg-jax"
    assert load_classifier(result.folder).class_names == CLASSES


def test_the_commands_accept_it(adopted, pictures):
    def invoke(*words: object) -> str:
        result = runner.invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, (result.stderr, result.exception)
        return result.stdout

    evaluated = json.loads(invoke("evaluate", adopted.folder, "--data", pictures, "--json"))
    assert evaluated["examples"] == 3
    assert list(evaluated["classes"]) == list(CLASSES)
    expected = OUTPUTS["classifier"]
    assert evaluated["loss"] == pytest.approx(
        -np.log([expected[0, 0], expected[1, 1], expected[0, 2]]).mean(), rel=1e-5
    )
    rows = list(csv.DictReader(io.StringIO(invoke("predict", adopted.folder, pictures, "--csv"))))
    found = [[float(row[name]) for name in CLASSES] for row in rows]
    np.testing.assert_allclose(found, expected[[0, 1, 0]], atol=1e-6)
    summary = json.loads(invoke("summary", adopted.folder, "--json"))
    assert summary["image_size"] == SIDE
    assert summary["parameters"] == 64 * 256 + 256 + 256 * 3 + 3 + backbone_parameters()
    assert summary["trained_parameters"] == summary["parameters"] - backbone_parameters()


def backbone_parameters() -> int:
    return sum(k.size + b.size for k, b in golden_arrays("backbone.h5").values())


def test_it_works_wherever_it_is_moved(adopted, pictures, tmp_path, monkeypatch):
    shutil.copytree(adopted.folder, tmp_path / "there" / "trees")
    monkeypatch.chdir(tmp_path / "there")
    hidden = adopted.folder.with_name("hidden")
    adopted.folder.rename(hidden)
    try:
        found = load_classifier("trees").predict(OUTPUTS["images"])
        np.testing.assert_allclose(found, OUTPUTS["classifier"], atol=1e-6)
        assert evaluate("trees", data=str(pictures)).examples == 3
        assert summarise_run("trees").image_size == SIDE
    finally:
        hidden.rename(adopted.folder)


def test_what_it_cannot_do_is_said(adopted):
    with pytest.raises(VggJaxError, match=r"converted from classifier.keras.*name some with --dat"):
        evaluate(adopted.folder)
    with pytest.raises(ConfigError, match=r"no training to go on with.*--weights .*backbone\."):
        train(run=str(adopted.folder), resume=True)
    assert left(adopted.folder) == ["backbone", "checkpoints", "config.toml", "run.json"]


def test_its_backbone_is_a_folder_of_weights_like_others(adopted):
    assert open_backbone(str(adopted.folder / "backbone")).digest == adopted.digest


def test_one_sigmoid_becomes_two_classes(tmp_path_factory):
    result = convert_golden("binary.keras", tmp_path_factory)
    assert result.class_names == ("class 0", "class 1")
    classifier = load_classifier(result.folder)
    assert classifier.loss == "categorical"
    found = classifier.predict(OUTPUTS["images"])
    np.testing.assert_allclose(found[:, 1:], OUTPUTS["binary"], atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_a_sigmoid_a_class_stays_one():
    file = read_weight_file(TRAINED)
    facts = dataclasses.replace(file.facts, output="sigmoid")
    described = describe_classifier(dataclasses.replace(file, facts=facts), None, None)
    assert described is not None
    assert described.loss == "binary"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], r"--classes names 2, but .*classifier.keras tells 3 classes apart"),
        (["a", "b", "c", "d"], r"--classes names 4"),
        ([], r"--classes names 0"),
        (["a", "b", "a"], r"--classes names 'a' 2 times"),
        (["a", "", "b"], r"--classes names '' 1 times"),
    ],
)
def test_names_must_be_one_for_each_class(names, message):
    with pytest.raises(ConfigError, match=message):
        describe_classifier(read_weight_file(TRAINED), names, None)


@pytest.mark.parametrize("size", [32, 63, 96, 224])
def test_a_size_that_does_not_lead_to_the_features_is_refused_with_the_range(size):
    with pytest.raises(ConfigError, match=r"takes 2 x 2: a size from 64 to 95\."):
        describe_classifier(read_weight_file(TRAINED), None, size)
    described = describe_classifier(read_weight_file(TRAINED), None, 95)
    assert described is not None
    assert described.image_size == 95


def test_a_size_must_be_told_where_features_are_flattened_and_the_file_does_not_say_it():
    flattened = read_weight_file(SOURCES / "classifier_legacy.h5")
    with pytest.raises(ConfigError, match=r"how large .*name --image-size, from 64 to 95\."):
        describe_classifier(flattened, None, None)
    with pytest.raises(ConfigError, match=r"--image-size is -5, but must be 32 or more"):
        describe_classifier(flattened, None, -5)
    averaged = describe_classifier(read_weight_file(SOURCES / "binary.weights.h5"), None, None)
    assert averaged is not None
    assert averaged.image_size == 224


def test_what_was_taken_for_granted_is_told(tmp_path):
    told = convert_weights(SOURCES / "classifier.weights.h5", tmp_path / "run", image_size=SIDE)
    assert [text.partition(" (")[0] for text in told.assumed] == [
        "a ReLU in the hidden layer, and a softmax at the end",
        "preprocessing caffe",
        "how pictures are resized",
    ]
    told = convert_weights(
        TRAINED, tmp_path / "other", preprocessing="caffe", interpolation="bilinear"
    )
    assert told.assumed == ()
    assert RunFolder(tmp_path / "other").read_config().interpolation == "bilinear"


def test_the_head_alone_has_names_and_sizes(tmp_path):
    with pytest.raises(ConfigError, match=r"--no-head takes the backbone alone"):
        convert_weights(TRAINED, tmp_path / "out", no_head=True, class_names=CLASSES)


def test_names_and_sizes_are_for_classifiers_alone():
    file = read_weight_file(SOURCES / "backbone.h5")
    for names, size in ((CLASSES, None), (None, 64)):
        with pytest.raises(ConfigError, match=r"holds no classifier of yours"):
            describe_classifier(file, names, size)
    assert describe_classifier(file, None, None) is None
    with pytest.raises(ConfigError, match=r"names no classes; --try needs weights with top"):
        describe_top(file)


@pytest.mark.parametrize("there", ["file", "folder", "run"])
def test_what_exists_is_left_alone(adopted, tmp_path, there):
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "run":
        shutil.copytree(adopted.folder, out)
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"exists already; choose another --out"):
        convert_weights(TRAINED, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    convert_weights(TRAINED, tmp_path / "out")
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize("breaks", ["save_weights", "new_record", "checkpoints", "rename"])
def test_nothing_is_left_of_what_failed_in_the_middle(tmp_path, monkeypatch, breaks):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if breaks == "checkpoints":
        monkeypatch.setattr(Checkpoints, "save_epoch", fail)
    elif breaks == "rename":
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda a, b: fail() if Path(b).name == "out" else rename(a, b)
        )
    else:
        monkeypatch.setattr(adopt, breaks, fail)
    with pytest.raises(RunError, match=r"out cannot be written: No space left on device"):
        convert_weights(TRAINED, tmp_path / "out")
    assert not left(tmp_path)


def test_the_backbone_alone_can_be_taken(tmp_path, tmp_path_factory):
    result = convert_weights(TRAINED, tmp_path / "out", no_head=True)
    assert (result.head, result.is_run, result.class_names) == ("", False, ())
    assert left(tmp_path / "out") == ["arrays", "metadata.json", "proof.json", "proof.md"]
    assert len(result.proof.rows) == 26


def test_unknown_heads_are_refused_with_what_they_are_unless_left_out(tmp_path):
    arrays = keras_arrays(1 / 32)
    rng = np.random.default_rng(0)
    for name, shape in (("first", (64, 100)), ("second", (100, 3))):
        arrays[name] = rng.standard_normal(shape, np.float32), np.zeros(shape[1], np.float32)
    write_keras_arrays(tmp_path / "odd.h5", arrays, "nested")
    with pytest.raises(WeightsError, match=r"flattened features, dense 100, dense 3;.*--no-head"):
        convert_weights(tmp_path / "odd.h5", tmp_path / "out")
    assert left(tmp_path) == ["odd.h5"]
    assert convert_weights(tmp_path / "odd.h5", tmp_path / "out", no_head=True).head == ""


def test_other_weights_in_a_run_are_told_apart_by_their_head(adopted, tmp_path):
    copy = shutil.copytree(adopted.folder, tmp_path / "run")
    with pytest.raises(WeightsError, match=r"already holds other weights \(with head\)"):
        convert_weights(TRAINED, copy / "backbone", no_head=True)
