"""Chunks of batches, whose steps are taken in one program: the same training, in fewer calls."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import copied, prepare
from training_runs import SAME_BITS_SIZE, Recorder, same_run, stop_after

from vgg_jax import sweep
from vgg_jax.config import TrainConfig
from vgg_jax.errors import TrainingDiverged
from vgg_jax.training import chunks
from vgg_jax.training.chunks import most_batches
from vgg_jax.training.features import in_chunk
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import HostRows
from vgg_jax.training.side_by_side import StackedSteps
from vgg_jax.training.steps import Steps, Totals
from vgg_jax.workflows import session
from vgg_jax.workflows.resume import resume_training
from vgg_jax.workflows.train import train

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.skipif(
        jax.default_backend() != "cpu" or jax.device_count() > 1, reason="for one CPU only"
    ),
]
HEADS = ["linear", "gap-mlp:hidden=[16],dropout=0.5"]


@pytest.fixture(scope="module")
def options(options) -> dict[str, object]:
    """Options of a training whose kept features have the bits of those computed anew."""
    return {**options, "image_size": SAME_BITS_SIZE}


@pytest.fixture(params=HEADS)
def given(options, request) -> dict[str, Any]:
    """Options of a training of three batches an epoch, whose steps are taken in chunks."""
    return {**options, "train_from": "head", "head": request.param}


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many batches were trained on, a number for each call."""
    counts: list[int] = []
    original = Steps.train

    def counting(self, state, totals, inputs):
        counts.append(inputs.batch_count)
        return original(self, state, totals, inputs)

    monkeypatch.setattr(Steps, "train", counting)
    return counts


def one_by_one(monkeypatch) -> None:
    monkeypatch.setattr(session, "most_batches", lambda *others, mixes: 1)


def batches_of(steps: Steps, count: int, rows: int = 4) -> list[Inputs]:
    """Return batches of drawn features, of which the last is of two examples."""
    rng = np.random.default_rng(0)
    channels = steps.functional.bind({}).backbone.output_shape(32)[-1]
    features = rng.standard_normal((count, rows, 1, 1, channels), np.float32)
    labels = rng.integers(0, 3, (count, rows)).astype(np.int32)
    valid = np.arange(count * rows).reshape(count, rows) < count * rows - 2
    return [
        Inputs(steps.pool(jnp.asarray(of_batch)), *map(jnp.asarray, rest))
        for of_batch, *rest in zip(features, labels, valid, strict=True)
    ]


def together(batches: list[Inputs], chunk: int) -> Inputs:
    """Return them as a chunk of so many, or more batches."""
    whole = map(jnp.concatenate, zip(*batches, strict=True))
    return Inputs(*(in_chunk(leaf, chunk, len(batches[0].valid)) for leaf in whole))


@pytest.mark.parametrize("head", HEADS)
def test_a_chunk_does_what_its_batches_do_to_the_bit(head):
    steps, state, _ = prepare("head", head=head)
    batches = batches_of(steps, 5)
    chunk = together(batches, 7)
    assert (chunk.is_chunk, chunk.batch_count, batches[0].batch_count) == (True, 5, 1)
    found = copied(steps.train(*copied((state, Totals.start())), chunk))
    evaluated = steps.evaluate(state.trained, chunk)
    totals = Totals.start()
    for i, inputs in enumerate(batches):
        for of_all, of_one in zip(evaluated, steps.evaluate(state.trained, inputs), strict=True):
            np.testing.assert_array_equal(of_all[i], of_one)
    for inputs in batches:
        state, totals = steps.train(state, totals, inputs)
    assert int(found[0].step) == int(state.step) == 5  # none on padding alone
    assert int(found[1].examples) == 5 * 4 - 2
    jax.tree.map(np.testing.assert_array_equal, found, copied((state, totals)))


def test_a_step_that_is_not_finite_is_told_apart_within_a_chunk():
    steps, state, _ = prepare("head", head="linear")
    batches = batches_of(steps, 4)
    batches[2] = batches[2]._replace(features=jnp.full_like(batches[2].features, np.nan))
    state, totals = steps.train(state, Totals.start(), together(batches, 4))
    assert (int(totals.failed_step), int(totals.skipped), int(state.step)) == (3, 1, 4)
    assert all(np.isfinite(value).all() for value in state.trained.values())


def test_candidates_side_by_side_take_chunks_too():
    steps, state, _ = prepare("head", head="linear")
    stacked, batches = StackedSteps(steps), batches_of(steps, 3)
    chunk = together(batches, 4)
    states, totals = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), (state, Totals.start()))
    losses, probabilities = stacked.evaluate(states.trained, chunk)
    assert (losses.shape, probabilities.shape) == ((4, 4, 2), (4, 4, 2, 3))
    found = copied(stacked.train(*copied((states, totals)), chunk))
    for i, inputs in enumerate(batches):
        np.testing.assert_array_equal(losses[i], stacked.evaluate(states.trained, inputs)[0])
    for inputs in batches:
        states, totals = stacked.train(states, totals, inputs)
    jax.tree.map(np.testing.assert_array_equal, found, copied((states, totals)))


@pytest.mark.parametrize("most", [32, 2])
def test_a_training_is_the_same_to_the_bit_with_fewer_calls(
    given, most, tmp_path, monkeypatch, taken
):
    monkeypatch.setattr(chunks, "_MOST_BATCHES", most)
    train(**given, run=str(tmp_path / "chunks"))
    kept = [3] if most > 3 else [2, 1]
    assert taken == [1, 1, 1, *kept]
    taken.clear()
    train(**given, run=str(tmp_path / "again"))  # with features that are there from the start
    assert taken == [*kept, *kept]
    taken.clear()
    one_by_one(monkeypatch)
    train(**given, features="off", run=str(tmp_path / "single"))
    assert taken == 6 * [1]
    same_run(tmp_path / "single", tmp_path / "chunks")
    same_run(tmp_path / "single", tmp_path / "again")


@pytest.mark.parametrize(
    "others",
    [
        {"views": 2, "augment": ("keras",), "epochs": 4},
        {"features_dtype": "bfloat16", "verify_features": 5},
        {"loss": "keras-binary", "label_smoothing": 0.1, "on_nan": "skip"},
    ],
    ids=str,
)
def test_other_options_make_no_difference(options, others, tmp_path, monkeypatch, taken):
    given = {**options, "train_from": "head", "head": "linear", **others}
    progress = Recorder()
    train(**given, run=str(tmp_path / "chunks"), progress=progress)
    assert taken[-1] == 3
    verified = [note for note in progress.notes if "computed anew" in note]
    assert len(verified) == (2 if "verify_features" in others else 0)
    one_by_one(monkeypatch)
    train(**given, features="off", run=str(tmp_path / "single"))
    same_run(tmp_path / "single", tmp_path / "chunks")


@pytest.mark.parametrize("features", ["memory", "disk"])
def test_an_interruption_is_heard_after_a_chunk_and_gone_on_with(
    options, features, tmp_path, monkeypatch, taken
):
    """In the second epoch, whose features are all there; those on disk are there again later."""
    given = {**options, "train_from": "head", "head": "linear", "features": features}
    monkeypatch.setattr(chunks, "_MOST_BATCHES", 2)
    train(**given, run=str(tmp_path / "whole"))
    start = [2, 1] if features == "disk" else [1, 1, 1]  # kept by the first training
    looks = len(start) + 1 + 1  # in an epoch, whose validation is one chunk, and in the next
    if features == "memory":
        looks += 1  # its batches of validation come one by one
    taken.clear()
    assert "in epoch 2, after step 5" in stop_after(looks, given, tmp_path / "run")
    assert taken == [*start, 2]
    taken.clear()
    resume_training({"run": str(tmp_path / "run")}, Recorder())
    assert taken == [1]
    same_run(tmp_path / "whole", tmp_path / "run")


def test_a_loss_that_is_not_finite_is_told_with_its_step(options, tmp_path, taken):
    given = {**options, "train_from": "head", "head": "linear", "learning_rate": 1e38}
    train(**{**given, "learning_rate": 1e-3, "epochs": 1}, run=str(tmp_path / "keeps"))
    taken.clear()
    with pytest.raises(TrainingDiverged, match="at step 2, in epoch 1"):
        train(**given, run=str(tmp_path / "run"))
    assert taken == [3]


@pytest.mark.parametrize("later", [[], ["jit(_gather)"]], ids=["features kept", "pictures stay"])
@pytest.mark.parametrize("head", [{}, {"train_from": "head", "head": "linear"}], ids=str)
def test_nothing_is_compiled_after_the_first_epoch(options, tmp_path, caplog, later, head):
    """But what takes pictures, which the first epoch has decoded, from the device."""

    class Marking(Recorder):
        def epoch_done(self, metrics, best):
            super().epoch_done(metrics, best)
            logging.getLogger("jax").warning("Epoch done")

    given = {**options, **head, "epochs": 3, "features": "off" if later else "memory"}
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        train(**given, run=str(tmp_path / "run"), progress=Marking())
    said = [record.getMessage() for record in caplog.records]
    compiled = [text.split()[4] if " compilation of " in text else text for text in said]
    for program in ("features", "train", "evaluate"):
        assert compiled.count(f"jit({program})") == 1
    after = compiled[compiled.index("Epoch done") :]
    assert {text for text in after if text.startswith("jit(")} <= {*later}


@pytest.mark.parametrize(
    "others",
    [{"on_device": "off", "verify_features": 5}, {"augment": ("keras",), "views": 2}],
    ids=str,
)
def test_heads_of_a_sweep_come_to_what_each_does_by_itself(
    options, tmp_path, monkeypatch, taken, others
):
    """Each pools the features that all have in common, once."""
    pooled: list[int] = []
    pool = Steps.pool

    def counting(self, features):
        if self.functional.pools:
            pooled.append(len(features))
        return pool(self, features)

    given = {**options, "train_from": "head", "epochs": 4, **others}
    heads = ["linear", "gap-mlp", "dense256"]
    views = others.get("views", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "pool", counting)
        found = sweep(**given, head=heads, run=str(tmp_path / "sweep"))
    computed = views * [1, 1, 1]  # for the first of them
    assert taken == [*computed, *(4 - views) * [3], *4 * [3], *12 * [1]]
    assert pooled == 2 * (views * 3 + 2) * [8]  # batches, with those of validation
    for outcome in found.outcomes:
        differs = dict(outcome.candidate.differs)
        train(**{**given, **differs}, run=str(tmp_path / outcome.candidate.name))
        same_run(tmp_path / outcome.candidate.name, outcome.run.path)


@pytest.mark.parametrize("way", ["disk alone", "no copy", "off"])
def test_heads_of_a_sweep_pool_each_batch_where_no_copy_is_kept(
    options, tmp_path, monkeypatch, taken, way
):
    given = {**options, "train_from": "head", "features": "off" if way == "off" else "disk"}
    with monkeypatch.context() as patch:
        if way == "disk alone":
            patch.setattr(Memory, "place_for", lambda self, size: None)
        elif way == "no copy":  # beside the features, for which there is room
            places = itertools.chain([HostRows], itertools.repeat(None))
            patch.setattr(Memory, "place_for", lambda self, size: next(places))
        found = sweep(**given, head=["linear", "dense256"], run=str(tmp_path / "sweep"))
    assert taken == 12 * [1]
    for outcome in found.outcomes:
        differs = dict(outcome.candidate.differs)
        train(**{**given, **differs}, run=str(tmp_path / outcome.candidate.name))
        same_run(tmp_path / outcome.candidate.name, outcome.run.path)


def test_candidates_side_by_side_count_their_steps(options, tmp_path):
    steps: list[int] = []

    class Counting(Recorder):
        def work_done(self, count: int) -> None:
            steps.append(count)

    given = {**options, "train_from": "head", "head": "linear", "learning_rate": [1e-2, 1e-3]}
    sweep(**given, run=str(tmp_path / "first"))
    sweep(**given, run=str(tmp_path / "second"), progress=Counting())
    assert steps[-2:] == [3, 3]


@pytest.mark.parametrize(
    ("boundary", "head", "others", "expected"),
    [
        ("head", "linear", {}, 32),
        ("head", "linear", {"batch_size": 200}, 20),
        ("head", "linear", {"batch_size": 5000}, 1),
        ("head", "linear", {"features_dtype": "bfloat16"}, 32),
        ("head", "gap-mlp:hidden=[1024]", {}, 32),
        ("head", "gap-mlp:hidden=[1100,1100]", {}, 1),
        ("head", "mlp:hidden=[16]", {}, 1),
        ("conv5_1", "linear", {}, 1),
    ],
    ids=str,
)
def test_chunks_are_taken_where_they_win(boundary, head, others, expected):
    steps, state, _ = prepare(boundary, head=head, width=1 / 16)
    config = TrainConfig.from_values({"data": "demo", "image_size": 32, **others}).resolved()
    assert most_batches(steps.functional, state.trained, config, mixes=False) == expected
    assert most_batches(steps.functional, state.trained, config, mixes=True) == 1


def test_a_chunk_of_large_features_is_short(monkeypatch):
    steps, state, _ = prepare("head", head="linear")
    config = TrainConfig.from_values({"data": "demo", "image_size": 32}).resolved()
    bytes_of_batch = config.batch_size * 32 * 4
    monkeypatch.setattr(chunks, "_MOST_BYTES", 3 * bytes_of_batch + 1)
    assert most_batches(steps.functional, state.trained, config, mixes=False) == 3
    monkeypatch.setattr(chunks, "_MOST_BYTES", bytes_of_batch - 1)
    assert most_batches(steps.functional, state.trained, config, mixes=False) == 1


@pytest.mark.parametrize(
    ("most", "examples", "expected"), [(32, 9, 2), (32, 21, 3), (32, 33 * 8, 17), (1, 800, 1)]
)
def test_chunks_of_a_split_are_about_even(most, examples, expected):
    steps = dataclasses.replace(prepare("head", head="linear")[0], most_batches=most)
    assert steps.chunk_size(examples, 8) == expected
