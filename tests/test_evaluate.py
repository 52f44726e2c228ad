"""Evaluation of a run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from vgg_jax.data.pipeline import batches
from vgg_jax.data.sources import open_data
from vgg_jax.errors import DataError, RunError, WeightsError
from vgg_jax.workflows.evaluate import evaluate
from vgg_jax.workflows.load import load_classifier
from vgg_jax.workflows.train import train


def test_every_example_counts_once_whatever_the_batch_size(run):
    result = evaluate(run.path)  # nine pictures in batches of eight
    assert result.examples == 9
    assert np.sum(result.confusion_matrix) == 9
    assert [c.support for c in result.classes.values()] == [3, 3, 3]


def test_it_agrees_with_predictions_made_one_by_one(run, photos):
    classifier = load_classifier(run.path)
    examples = open_data(str(photos), demo_folder=lambda: photos, seed=0).splits["test"]
    rows = list(batches(examples, batch_size=1, image_size=32))
    shares = np.concatenate([classifier.predict(batch.images) for batch in rows])
    labels = np.concatenate([batch.labels for batch in rows])
    result = evaluate(run.path)
    assert result.accuracy == pytest.approx((shares.argmax(1) == labels).mean())
    expected = -np.log(shares[np.arange(len(labels)), labels]).mean()
    assert result.loss == pytest.approx(expected, rel=1e-4)


def test_it_agrees_with_the_validation_of_the_training(run):
    best = run.best
    result = run.evaluate(split="validation")
    assert result.accuracy == pytest.approx(best.validation_accuracy)
    assert result.loss == pytest.approx(best.validation_loss, rel=1e-5)
    latest = evaluate(run.path, split="validation", checkpoint="latest")
    assert latest.loss == pytest.approx(run.history[-1].validation_loss, rel=1e-5)


DRAWS = """
from flax import nnx

class Head(nnx.Module):
    def __init__(self, feature_shape, num_classes, *, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.logits = nnx.Linear(feature_shape[-1], num_classes, rngs=rngs)

    def __call__(self, features):
        few = self.dropout(features.mean((1, 2)), deterministic=False)
        return self.logits(few)
"""


def test_a_head_may_draw_in_evaluation_too(options, tmp_path):
    (tmp_path / "draws.py").write_text(DRAWS)
    run = train(**{**options, "head": f"{tmp_path / 'draws.py'}#Head"}, run=str(tmp_path / "run"))
    result = evaluate(run.path, split="validation", allow_local_code=True)  # in pieces
    assert result.loss == pytest.approx(run.history[-1].validation_loss, rel=1e-5)


def test_other_data_of_the_same_classes_count_whole(run, photos, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "other")
    assert evaluate(run.path, data=str(tmp_path / "other")).examples == 21


def test_other_classes_are_refused(run, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "other")
    for split in ("train", "validation", "test"):
        (tmp_path / "other" / split / "dots").rename(tmp_path / "other" / split / "spots")
    with pytest.raises(DataError, match=r"missing: dots; extra: spots"):
        evaluate(run.path, data=str(tmp_path / "other"))


def test_a_split_that_is_not_there_is_refused(run, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "test")
    with pytest.raises(DataError, match=r"no test split, only train, validation"):
        evaluate(run.path, data=str(tmp_path / "other"))


def test_other_weights_than_the_runs_are_refused(run):
    with pytest.raises(WeightsError, match=r"not those that the run was trained on"):
        evaluate(run.path, weights="random:0:0.0625")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run"):
        evaluate(tmp_path)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_a_picture_comes_out_the_same_beside_any_number_of_others(run, count):
    classifier = load_classifier(run.path)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    expected = classifier.predict(images)[:count]
    found = classifier.predict(images[:count])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
