"""Batch augmentations in the training step: soft targets, padding, keys, devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import copied, make_batch, prepare, steps_on_devices, take_step

from vgg_jax.augment.chain import Chain
from vgg_jax.augment.pixel import Brightness
from vgg_jax.contract import BatchAugmentation
from vgg_jax.errors import PluginError
from vgg_jax.training.losses import example_losses
from vgg_jax.training.steps import Totals, mixing_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blend(BatchAugmentation):
    """Blend each valid row with the first one."""

    share: float = 0.3

    def apply(self, key, images, targets, valid):
        share = self.share * jax.random.uniform(key)

        def blended(x):
            rows = valid.reshape(-1, *[1] * (x.ndim - 1))
            return jnp.where(rows, x * (1 - share) + x[:1] * share, x)

        return blended(images), blended(targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(BatchAugmentation):
    result: str = "images"

    def apply(self, key, images, targets, valid):
        return {"images": images, "shape": (images[1:], targets), "one": (images,)}[self.result]


def step_with(augment, batch, **options):
    steps, state, frozen = prepare(augment=augment, **options)
    state, totals = take_step(steps, state, Totals.start(), frozen, batch)
    return copied(state.trained), copied(totals)


def test_a_step_mixes_images_and_targets_by_one_key():
    batch = make_batch(4, 4)
    chain = Chain((Blend(),))
    trained, totals = step_with(chain, batch)
    targets = jax.nn.one_hot(batch["labels"], 3)
    images = batch["images"].astype(jnp.float32) / 255
    mixed, targets = chain.mix(mixing_key(0, jnp.uint32(0)), images, targets, batch["valid"])
    assert not np.allclose(mixed, images)
    steps, state, frozen = prepare()
    logits = steps.functional.bind({**state.trained, **frozen})(mixed)
    expected = example_losses("categorical", logits, targets).sum()
    assert totals.loss == pytest.approx(float(expected), rel=1e-4)
    right = (logits.argmax(-1) == targets.argmax(-1)).sum()
    assert totals.correct == int(right)
    plain, _ = step_with(None, batch)
    assert any(not np.array_equal(trained[path], plain[path]) for path in plain)


def test_nothing_mixed_is_a_plain_step():
    batch = make_batch(4, 4)
    mixed, totals = step_with(Chain((Blend(share=0.0),)), batch)
    plain, plain_totals = step_with(Chain((Brightness(low=1, high=1),)), batch)
    for path in plain:
        np.testing.assert_allclose(mixed[path], plain[path], atol=1e-6, err_msg=path)
    assert totals.loss == pytest.approx(float(plain_totals.loss), rel=1e-6)


def test_padding_rows_count_for_nothing():
    small, large = make_batch(3, 3), make_batch(3, 8, seed=1)
    padded = {name: value.at[:3].set(small[name]) for name, value in large.items()}
    alone, totals = step_with(Chain((Blend(),)), small)
    beside, padded_totals = step_with(Chain((Blend(),)), padded)
    assert totals.examples == padded_totals.examples == 3
    assert totals.loss == pytest.approx(float(padded_totals.loss), rel=1e-5)
    for path, value in alone.items():
        np.testing.assert_allclose(value, beside[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_every_step_draws_anew_and_compiles_once():
    steps, state, frozen = prepare(augment=Chain((Brightness(), Blend())))
    keys = {tuple(np.asarray(jax.random.key_data(mixing_key(0, jnp.uint32(i))))) for i in range(9)}
    assert len(keys) == 9
    programs: list[Any] = [type(steps).train, type(steps).mixed_features]
    before = [program._cache_size() for program in programs]
    totals = Totals.start()
    for epoch in (1, 2):
        for valid in (4, 4, 2):  # a ragged last batch
            batch = make_batch(valid, 4)
            number = jnp.asarray(epoch, jnp.uint32)
            state, totals = take_step(steps, state, totals, frozen, batch, number)
    compiled = [program._cache_size() for program in programs]
    assert [after - count for after, count in zip(compiled, before, strict=True)] == [1, 1]


@pytest.mark.parametrize("result", ["images", "shape", "one"])
def test_what_is_no_batch_is_refused(result):
    with pytest.raises(
        PluginError,
        match=r"apply of test_batch_augmentations.Wrong returned .* but must return float32",
    ):
        step_with(Chain((Wrong(result=result),)), make_batch(4, 4))


@pytest.mark.parametrize("name", ["categorical", "binary", "keras-binary"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_take_soft_targets(name, smoothing):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)), jnp.float32)
    one, other = jnp.array([0, 1]), jnp.array([3, 1])
    mixed = 0.3 * jax.nn.one_hot(one, 4) + 0.7 * jax.nn.one_hot(other, 4)
    expected = 0.3 * example_losses(name, logits, one, smoothing)
    expected += 0.7 * example_losses(name, logits, other, smoothing)
    found = example_losses(name, logits, mixed, smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # they are linear in the targets


def test_two_devices_mix_as_one_does():
    one, two = steps_on_devices("""
from test_batch_augmentations import Blend
from vgg_jax.augment.chain import Chain
steps, state, frozen = prepare(augment=Chain((Blend(),)))
batch = make_batch(7, 8)
""")
    assert (one[0], two[0]) == (1, 2)
    assert one[1] == pytest.approx(two[1], rel=1e-5)
    assert one[3] == two[3] == 7
