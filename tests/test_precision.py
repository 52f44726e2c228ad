"""Trainings, evaluations and predictions with convolutions in bfloat16."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_steps import copied, make_batch, prepare, take_step
from training_runs import SAME_BITS_SIZE, Recorder, same_run

from vgg_jax.data.pipeline import batches
from vgg_jax.data.sources import open_data
from vgg_jax.errors import ConfigError
from vgg_jax.model import arithmetic, pieces
from vgg_jax.training.steps import Totals
from vgg_jax.workflows import trained_classifier
from vgg_jax.workflows.load import load_classifier
from vgg_jax.workflows.resume import resume_training
from vgg_jax.workflows.run import Run
from vgg_jax.workflows.train import train

DEVICES = pytest.mark.parametrize("on_one_cpu", [True, False], ids=["one CPU", "others"])


def difference(found, expected) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def rounds(program: str) -> bool:
    """Tell whether a program for one CPU rounds to bfloat16, in the way that suits this one."""
    if arithmetic.multiplies_bfloat16():
        return "bf16" in program
    return "reduce_precision" in program and "bf16" not in program


@DEVICES
def test_features_differ_by_rounding_alone(on_one_cpu):
    exact, _, frozen = prepare(image_size=SAME_BITS_SIZE, width=1)
    rounded = dataclasses.replace(exact, precision="bfloat16", on_one_cpu=on_one_cpu)
    images = make_batch(rows=11, image_size=SAME_BITS_SIZE)["images"]
    found = np.asarray(rounded.features(frozen, images))
    assert found.dtype == np.float32
    assert difference(found, np.asarray(exact.features(frozen, images))) < 2e-2
    text = rounded.features.lower(rounded, frozen, images).as_text()
    assert rounds(text) if on_one_cpu else "bf16" in text
    if on_one_cpu:
        for rows in (4, 6):
            few = rounded.features(frozen, images[-rows:])
            np.testing.assert_array_equal(few, found[-rows:])


@pytest.mark.parametrize("boundary", ["conv1_1", "pool1", "conv3_2"])
def test_large_pictures_go_through_the_first_layers_one_by_one(boundary, monkeypatch):
    exact, _, frozen = prepare(boundary, image_size=SAME_BITS_SIZE, width=1)
    images = make_batch(rows=11, image_size=SAME_BITS_SIZE)["images"]
    found = []
    for most_bytes in (pieces._MOST_BYTES, 0):
        monkeypatch.setattr(pieces, "_MOST_BYTES", most_bytes)
        steps = dataclasses.replace(exact, precision="bfloat16", on_one_cpu=True)
        lowered = steps.features.lower(steps, frozen, images)
        assert lowered.as_text().count("stablehlo.while") == (1 if most_bytes else 2)
        found.append(np.asarray(steps.features(frozen, images)))
        np.testing.assert_array_equal(steps.features(frozen, images[-5:]), found[-1][-5:])
    few, alone = found
    assert difference(alone, few) < 2e-2


@DEVICES
def test_a_step_does_nearly_what_one_in_float32_does(on_one_cpu):
    exact, state, frozen = prepare("conv4_3", width=1 / 4, image_size=80)
    sgd = optax.sgd(1e-3)
    exact = dataclasses.replace(exact, tx=lambda numbers: sgd)
    state = state._replace(optimizer=sgd.init(state.trained))
    before, after = copied(state.trained), []
    for steps in (
        exact,
        dataclasses.replace(exact, precision="bfloat16", on_one_cpu=on_one_cpu),
    ):
        started = jax.tree.map(jnp.array, state)
        trained, totals = take_step(
            steps, started, Totals.start(), frozen, make_batch(32, 32, image_size=80)
        )
        after.append((copied(trained.trained), float(totals.loss)))
    (expected, loss), (found, near) = after
    assert near == pytest.approx(loss, rel=2e-2)
    for path, value in expected.items():
        assert found[path].dtype == np.float32
        # Rounding decides which of nearly equal pixels a pooling takes, and whose gradient counts.
        most = 5e-2 if path.startswith("head/") else 0.25
        moved, wanted = found[path] - before[path], value - before[path]
        assert np.linalg.norm(moved - wanted) < most * np.linalg.norm(wanted), path


@pytest.fixture(scope="module")
def given(options) -> dict[str, object]:
    return {
        **options,
        "weights": "random:0",
        "train_from": "conv5_3",
        "image_size": SAME_BITS_SIZE,
        "learning_rate": 1e-5,
        "precision": "bfloat16",
    }


@pytest.fixture(scope="module")
def rounded(given, tmp_path_factory) -> Run:
    """A trained run, not to be changed."""
    return train(**given, run=str(tmp_path_factory.mktemp("runs") / "bfloat16"))


def test_kept_features_give_the_same_training_to_the_bit(given, rounded, tmp_path):
    train(**given, features="off", run=str(tmp_path / "off"))
    same_run(tmp_path / "off", rounded.path)
    progress = Recorder()
    train(**given, run=str(tmp_path / "kept"), verify_features=9, progress=progress)
    assert any("30 of 30 are there" in note for note in progress.notes)
    same_run(tmp_path / "kept", rounded.path)


def test_a_training_comes_to_nearly_the_same(given, rounded, tmp_path):
    exact = train(**{**given, "precision": "float32"}, run=str(tmp_path / "float32"))
    for one, other in zip(exact.history, rounded.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-2)


def test_evaluation_and_prediction_have_the_precision_of_the_training(
    rounded, photos, tmp_path, monkeypatch
):
    best = rounded.best
    found = rounded.evaluate(split="validation")
    assert found.loss == pytest.approx(best.validation_loss, rel=1e-5)
    exact = tmp_path / "float32"
    shutil.copytree(rounded.path, exact)
    options = exact / "config.toml"
    text = options.read_text()
    options.write_text(text.replace('precision = "bfloat16"', 'precision = "float32"'))
    examples = open_data(str(photos), demo_folder=lambda: photos, seed=0).splits["train"]
    (batch,) = batches(examples, batch_size=len(examples), image_size=SAME_BITS_SIZE)
    expected, many = load_classifier(exact), load_classifier(rounded.path)
    shares = expected.predict(batch.images)
    assert np.ptp(shares, axis=0).max() > 0.1
    for count in (len(examples), 8):
        given = batch.images[-count:]
        text = many._logits.lower(many._parameters, given).as_text()
        assert rounds(text)
        assert np.abs(many.predict(given) - shares[-count:]).max() < 5e-2
    few = many.predict(batch.images[:7])  # in float32: nothing to compile
    assert np.array_equal(few, expected.predict(batch.images[:7]))
    monkeypatch.setattr(trained_classifier, "on_one_cpu", lambda: False)
    devices = load_classifier(rounded.path)
    assert "bf16" in devices._logits.lower(devices._parameters, batch.images[:7]).as_text()
    assert np.abs(devices.predict(batch.images[:7]) - few).max() < 5e-2


@pytest.mark.parametrize(
    ("instructions", "warned"),
    [("avx2 fma", 1), ("avx2 avx512_bf16", 1), ("avx2 amx_bf16 avx512_bf16", 0)],
)
def test_a_processor_that_gains_nothing_is_told_and_loses_nothing(
    given, tmp_path, monkeypatch, instructions, warned
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {instructions} sse\n")
    monkeypatch.setattr(arithmetic, "_CPUINFO", cpuinfo)
    steps, _, frozen = prepare("conv2_1", image_size=32, width=1)
    steps = dataclasses.replace(steps, precision="bfloat16", on_one_cpu=True)
    images = make_batch(rows=4, image_size=32)["images"]
    text = steps.features.lower(steps, frozen, images).as_text()
    assert rounds(text)
    assert ("bf16" in text) == (not warned)
    progress = Recorder()
    train(**{**given, "epochs": 1}, run=str(tmp_path / "run"), progress=progress)
    assert sum("--precision bfloat16" in text for text in progress.warnings) == warned


def test_it_is_part_of_a_run(rounded):
    given = {"run": str(rounded.path), "epochs": 3, "precision": "float32"}
    with pytest.raises(ConfigError, match="--precision 'float32' differs"):
        resume_training(given, Recorder())
