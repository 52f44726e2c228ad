"""The compiled steps: what they move, what they cost, and that padding counts for nothing."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_runs import SAME_BITS_SIZE

from vgg_jax.augment.chain import Chain, build_chain
from vgg_jax.augment.geometric import HorizontalFlip
from vgg_jax.contract import BatchAugmentation
from vgg_jax.layers import LAYERS
from vgg_jax.model.classifier import build_classifier, make_functional
from vgg_jax.model.freezing import label_parameters, split_parameters, train_only
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.optim import make_optimizer
from vgg_jax.training.steps import (
    Hyperparameters,
    Steps,
    Totals,
    TrainState,
    example_keys,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap(BatchAugmentation):
    """Exchange the first rows and the last: pictures of different pieces."""

    def apply(self, key, images, targets, valid):
        return images[::-1], targets[::-1]


def prepare(
    boundary="conv5_1", *, image_size=32, head="dense256", decay=0.1, augment=None, width=1 / 16
):
    """Return steps, state and frozen parameters of a narrow classifier."""
    backbone = VGG16.random(width, seed=0)
    classifier = build_classifier(
        backbone,
        parse_choice(head),
        num_classes=3,
        image_size=image_size,
        boundary=boundary,
        seed=0,
    )
    functional, parameters = make_functional(classifier)
    labels = label_parameters(parameters, boundary)
    trained, frozen = split_parameters(parameters, labels)
    numbers = Hyperparameters(jnp.float32(1e-3), jnp.float32(decay), jnp.float32(0))

    def tx(numbers):
        optimizer = make_optimizer(
            "rmsprop", learning_rate=numbers.learning_rate, weight_decay=numbers.weight_decay
        )
        return train_only(optimizer, {path: labels[path] for path in trained})

    state = TrainState(trained, tx(numbers).init(trained), jnp.zeros((), jnp.uint32), numbers)
    steps = Steps(functional, tx, "categorical", augment=augment, num_classes=3)
    return steps, state, frozen


def make_batch(valid=4, rows=4, image_size=32, seed=0):
    rng = np.random.default_rng(seed)
    batch = {
        "images": rng.integers(0, 256, (rows, image_size, image_size, 3), np.uint8),
        "labels": rng.integers(0, 3, rows).astype(np.int32),
        "valid": np.arange(rows) < valid,
        "content": rng.integers(0, 2**32, (rows, 3), np.uint32),
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


def copied(tree):
    return jax.tree.map(np.array, tree)


EPOCH = jnp.asarray(1, jnp.uint32)


def inputs_of(steps, frozen, batch, epoch=EPOCH, step=0):
    """Return what a batch of pictures gives the steps of training and evaluation."""
    targets = batch["labels"]
    if steps.augment is None:
        features = steps.features(frozen, batch["images"])
    elif steps.augment.mixes:
        features, targets = steps.mixed_features(frozen, batch, epoch, jnp.uint32(step))
    else:
        features = steps.augmented_features(frozen, batch["images"], batch["content"], epoch)
    return Inputs(steps.pool(features), targets, batch["valid"])


def take_step(steps, state, totals, frozen, batch, epoch=EPOCH):
    """Take one step on a batch of pictures."""
    inputs = inputs_of(steps, frozen, batch, epoch, int(state.step))
    return steps.train(state, totals, inputs)


@pytest.mark.parametrize("boundary", ["conv5_1", "conv4_2", "head"])
def test_frozen_parameters_stay_and_trained_ones_move(boundary):
    steps, state, frozen = prepare(boundary)
    first = LAYERS.index(boundary) if boundary in LAYERS else len(LAYERS)
    convolutions = [path.split("/")[1] for path in frozen if path.endswith("kernel")]
    assert convolutions == [layer for layer in LAYERS[:first] if layer.startswith("conv")]
    before, frozen_before = copied(state.trained), copied(frozen)
    totals = Totals.start()
    for i in range(3):
        state, totals = take_step(steps, state, totals, frozen, make_batch(seed=i))
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, frozen_before[path], err_msg=path)
    for path, value in state.trained.items():
        assert not np.array_equal(value, before[path]), path
    assert int(state.step) == 3
    assert int(totals.examples) == 12


def test_a_step_takes_over_the_memory_of_what_it_changes():
    steps, state, frozen = prepare()
    inputs, totals = inputs_of(steps, frozen, make_batch()), Totals.start()
    steps.train(state, totals, inputs)
    assert all(value.is_deleted() for value in jax.tree.leaves((state, totals)))
    assert not any(value.is_deleted() for value in inputs)


def test_the_optimizer_holds_no_state_for_frozen_parameters():
    _, state, frozen = prepare("conv5_1")
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.optimizer)}
    for path in frozen:
        assert not any(path in other for other in paths), path
    for path in state.trained:
        assert any(path in other for other in paths), path


def test_padding_rows_count_for_nothing():
    results = []
    for rows, filler in ((3, 0), (8, 1)):
        steps, state, frozen = prepare()
        small, large = make_batch(3, 3), make_batch(3, rows, seed=filler)
        batch = {name: value.at[:3].set(small[name]) for name, value in large.items()}
        state, totals = take_step(steps, state, Totals.start(), frozen, batch)
        results.append((copied(state.trained), copied(totals)))
    assert results[0][1].examples == results[1][1].examples == 3
    assert results[0][1].loss == pytest.approx(results[1][1].loss, rel=1e-6)
    for path, value in results[0][0].items():
        np.testing.assert_allclose(value, results[1][0][path], rtol=1e-4, atol=1e-5, err_msg=path)


def counted(lowered) -> float:
    """Return the operations that XLA counts in the compiled program."""
    return (lowered.compile().cost_analysis() or {})["flops"]


def test_the_prefix_in_pieces_gives_the_same_bits_and_takes_less_memory():
    steps, _, frozen = prepare(image_size=SAME_BITS_SIZE)
    few = dataclasses.replace(steps, on_one_cpu=True)
    for rows in (2, 4, 7, 8, 9, 20, 23):
        images = make_batch(rows=rows, image_size=SAME_BITS_SIZE)["images"]
        np.testing.assert_array_equal(few.features(frozen, images), steps.features(frozen, images))

    def memory(steps, rows):
        images = make_batch(rows=rows, image_size=SAME_BITS_SIZE)["images"]
        analysis = steps.features.lower(steps, frozen, images).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    for rows, share in ((20, 0.3), (23, 0.35)):
        assert memory(few, rows) < share * memory(steps, rows)


def test_frozen_layers_of_full_width_take_fewer_multiplications_and_give_the_same_bits():
    steps, _, frozen = prepare(image_size=SAME_BITS_SIZE, width=1)
    fast = dataclasses.replace(steps, on_one_cpu=True)
    images = make_batch(rows=11, image_size=SAME_BITS_SIZE)["images"]
    found, plain = (np.asarray(each.features(frozen, images)) for each in (fast, steps))
    assert not np.array_equal(found, plain)
    assert np.abs(found - plain).max() <= 1e-5 * np.abs(plain).max()
    for rows in (2, 4, 6):
        np.testing.assert_array_equal(fast.features(frozen, images[-rows:]), found[-rows:])

    def operations(steps):
        return counted(steps.features.lower(steps, frozen, images[:4]))

    assert operations(fast) < 0.75 * operations(steps)


@pytest.mark.parametrize("boundary", ["conv4_3", "head"])
def test_a_step_on_one_cpu_does_what_others_do(boundary):
    steps, state, frozen = prepare(boundary, width=1 / 4, image_size=80)
    sgd = optax.sgd(1e-3)
    steps = dataclasses.replace(steps, tx=lambda numbers: sgd)
    state = state._replace(optimizer=sgd.init(state.trained))
    before, after = copied(state.trained), []
    for on_one_cpu in (False, True):
        ways = dataclasses.replace(steps, on_one_cpu=on_one_cpu)
        started = jax.tree.map(jnp.array, state)
        trained, totals = take_step(
            ways, started, Totals.start(), frozen, make_batch(image_size=80)
        )
        after.append((copied(trained.trained), float(totals.loss)))
    (one, loss), (other, same) = after
    assert same == pytest.approx(loss, rel=1e-5)
    for path, value in one.items():
        moved = np.abs(value - before[path]).max()
        np.testing.assert_allclose(other[path], value, rtol=1e-6, atol=1e-5 * moved, err_msg=path)


@pytest.mark.parametrize("rows", [4, 8, 10])
def test_augmented_and_mixed_pictures_in_pieces_give_the_same_bits(rows):
    chain = Chain((HorizontalFlip(), Swap()))
    steps, _, frozen = prepare(image_size=SAME_BITS_SIZE, augment=chain)
    few = dataclasses.replace(steps, on_one_cpu=True)
    batch, number = make_batch(rows, rows, image_size=SAME_BITS_SIZE), jnp.uint32(1)
    images, content = batch["images"], batch["content"]
    whole = steps.augmented_features(frozen, images, content, number)
    assert not np.array_equal(whole, steps.features(frozen, images))
    np.testing.assert_array_equal(few.augmented_features(frozen, images, content, number), whole)
    mixed, targets = steps.mixed_features(frozen, batch, number, number)
    assert not np.array_equal(mixed, whole)
    found = few.mixed_features(frozen, batch, number, number)
    np.testing.assert_array_equal(found[0], mixed)
    np.testing.assert_array_equal(found[1], targets)


def test_a_step_costs_no_more_than_the_prefix_and_three_suffixes():
    size, rows = 96, 8
    steps, state, frozen = prepare(image_size=size)
    batch = make_batch(rows, rows, image_size=size)
    parameters = {**state.trained, **frozen}

    def flops(function, *args) -> float:
        return counted(jax.jit(function).lower(*args))

    def prefix(parameters, images):
        return steps.functional.bind(parameters).prefix(images)

    def suffix(parameters, features):
        return steps.functional.bind(parameters).suffix(features)

    features = jax.eval_shape(prefix, parameters, batch["images"])
    allowed = flops(prefix, parameters, batch["images"]) + 3 * flops(suffix, parameters, features)
    inputs = Inputs(features, batch["labels"], batch["valid"])
    used = counted(Steps.features.lower(steps, frozen, batch["images"]))
    used += counted(Steps.train.lower(steps, state, Totals.start(), inputs))
    assert 0.5 * allowed < used <= 1.02 * allowed


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    steps, state, frozen = prepare()
    batch, good = make_batch(), make_batch(seed=1)
    state, totals = take_step(steps, state, Totals.start(), frozen, good)
    before = copied(state)
    bias = state.trained["head/logits/bias"]
    state.trained["head/logits/bias"] = jnp.full_like(bias, jnp.nan)
    state, totals = take_step(steps, state, totals, frozen, batch)
    for path, value in state.trained.items():
        if path != "head/logits/bias":
            np.testing.assert_array_equal(value, before.trained[path], err_msg=path)
    for new, old in zip(
        jax.tree.leaves(state.optimizer), jax.tree.leaves(before.optimizer), strict=True
    ):
        np.testing.assert_array_equal(new, old)
    assert int(state.step) == 2
    assert (int(totals.skipped), int(totals.failed_step)) == (1, 2)
    assert np.isnan(totals.failed_loss)
    sums = totals.fetch()
    assert np.isfinite(sums.loss)
    assert sums.examples == 4  # of the first step alone


def test_a_gradient_that_is_not_finite_is_noticed_though_the_loss_is():
    steps, state, frozen = prepare()
    batch = make_batch()
    before = copied(state.trained)
    # The loss stays finite: the softmax of one class is 1, of the others 0. Its gradient by the
    # kernel is a difference of shares times features, and these are too large to be squared.
    state.trained["backbone/conv5_3/bias"] = jnp.full_like(
        state.trained["backbone/conv5_3/bias"], 1e20
    )
    state.trained["head/hidden/kernel"] = jnp.zeros_like(state.trained["head/hidden/kernel"])
    state.trained["head/hidden/bias"] = jnp.ones_like(state.trained["head/hidden/bias"])
    state, totals = take_step(steps, state, Totals.start(), frozen, batch)
    assert int(totals.failed_step) == 1
    assert np.isfinite(totals.failed_loss)
    np.testing.assert_array_equal(
        state.trained["backbone/conv5_1/kernel"], before["backbone/conv5_1/kernel"]
    )


def test_evaluation_needs_no_key_and_repeats():
    steps, state, frozen = prepare()
    batch = make_batch()
    inputs = inputs_of(steps, frozen, batch)
    losses, shares = steps.evaluate(state.trained, inputs)
    again, _ = steps.evaluate(state.trained, inputs)
    np.testing.assert_array_equal(losses, again)
    np.testing.assert_allclose(np.asarray(shares).sum(1), 1, rtol=1e-5)
    assert losses.shape == (4,)


def test_augmentation_is_for_training_alone():
    chain = build_chain([parse_choice("keras")])
    plain, state, frozen = prepare()
    batch = make_batch()
    expected = plain.evaluate(state.trained, inputs_of(plain, frozen, batch))[0]
    losses = []
    for epoch in (1, 1, 2):
        steps, state, frozen = prepare(augment=chain)
        _, totals = take_step(
            steps, state, Totals.start(), frozen, batch, jnp.asarray(epoch, jnp.uint32)
        )
        losses.append(float(totals.loss))
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]
    assert losses[0] != pytest.approx(float(expected.sum()), rel=1e-4)


def test_keys_depend_on_seed_epoch_content_and_occurrence_alone():
    content = jnp.asarray([[1, 2, 0], [1, 2, 1], [3, 2, 0], [1, 2, 0]], jnp.uint32)
    keys = jax.random.key_data(example_keys(0, EPOCH, content))
    np.testing.assert_array_equal(keys[0], keys[3])
    assert len({tuple(key) for key in keys.tolist()}) == 3
    one = jax.random.key_data(example_keys(0, EPOCH, content[2:3]))
    np.testing.assert_array_equal(one[0], keys[2])
    for other in (example_keys(1, EPOCH, content), example_keys(0, EPOCH + 1, content)):
        assert not np.array_equal(jax.random.key_data(other)[0], keys[0])


def steps_on_devices(code: str) -> list[list[float]]:
    """Return what a step on one device and on two gives, as a process with two devices prints it.

    Args:
        code: Gives `steps, state, frozen` and `batch`.
    """
    code = f"""
import jax
from jax.sharding import AxisType
from test_steps import copied, make_batch, prepare, take_step
from vgg_jax.training.steps import Totals, data_mesh, put_batch, replicate
{code}
one = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
for mesh in (one, data_mesh()):
    after, totals = take_step(
        steps, replicate(mesh, copied(state)), replicate(mesh, Totals.start()),
        replicate(mesh, frozen), put_batch(mesh, batch))
    kernel = after.trained["head/hidden/kernel"]
    devices = len(kernel.sharding.device_set)
    print(devices, float(totals.loss), float(abs(kernel).sum()), int(totals.examples))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    assert done.returncode == 0, done.stderr
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_two_devices_take_the_same_step_as_one():
    one, two = steps_on_devices("steps, state, frozen = prepare()\nbatch = make_batch(3, 4)")
    assert (one[0], two[0]) == (1, 2)
    assert one[3] == two[3] == 3
    np.testing.assert_allclose(one[1:], two[1:], rtol=1e-5)
