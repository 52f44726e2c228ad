"""mixup and CutMix: what is mixed with what, in which shares."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vgg_jax_mixup import CutMix, Mixup, MixupCutMix, draw_partners

from vgg_jax.api import OptionError
from vgg_jax.testing import check_augmentation

KEYS = jax.random.split(jax.random.key(0), 40)
VALID = jnp.arange(6) < 4


def batch(padding: float = 0.0, side: int = 20):
    """Row i is all of the value i / 10, and of class i; padding has a value of its own."""
    values = jnp.where(VALID, jnp.arange(6) / 10, padding)
    images = jnp.broadcast_to(values[:, None, None, None], (6, side, side, 3))
    targets = jnp.where(VALID[:, None], jnp.eye(6), padding)
    return images, targets, VALID


@functools.partial(jax.jit, static_argnums=0)
def apply(augmentation, key, images, targets, valid):
    return augmentation.apply(key, images, targets, valid)


def many(rows: int = 1200):
    """Pixels of rows that each have a class of their own."""
    return jnp.zeros((rows, 1, 1, 3)), jnp.eye(rows), jnp.ones(rows, bool)


@pytest.mark.parametrize("kind", [Mixup, CutMix, MixupCutMix])
def test_the_contract_is_kept(kind):
    check_augmentation(kind)


def test_partners_are_a_permutation_of_the_valid_rows():
    found = np.asarray(jax.vmap(lambda key: draw_partners(key, VALID))(KEYS))
    for partners in found:
        assert sorted(partners[:4]) == [0, 1, 2, 3]
        assert list(partners[4:]) == [4, 5]
    assert all(len(set(found[:, i])) == 4 for i in range(4))
    scattered = jnp.array([False, True, False, True, True])
    for key in KEYS[:5]:
        partners = np.asarray(draw_partners(key, scattered))
        assert sorted(partners[[1, 3, 4]]) == [1, 3, 4]
        assert list(partners[[0, 2]]) == [0, 2]


@pytest.mark.parametrize("kind", [Mixup, CutMix, MixupCutMix])
def test_padding_neither_changes_nor_is_mixed_in(kind):
    images, targets, valid = batch(padding=jnp.nan)
    for key in KEYS[:10]:
        mixed, shares = apply(kind(), key, images, targets, valid)
        assert np.isfinite(mixed[:4]).all()
        assert np.isfinite(shares[:4]).all()
        assert np.isnan(mixed[4:]).all()


@pytest.mark.parametrize("kind", [Mixup, CutMix, MixupCutMix])
def test_targets_tell_the_shares_of_the_pixels(kind):
    """A pixel of row i has the value i / 10, so the mean of a picture is that of its classes."""
    mixed = 0
    for key in KEYS:
        images, targets, valid = batch()
        found, shares = apply(kind(), key, images, targets, valid)
        np.testing.assert_allclose(shares.sum(1)[:4], 1, rtol=1e-6)
        expected = shares[:4] @ (jnp.arange(6) / 10)
        np.testing.assert_allclose(found[:4].mean((1, 2, 3)), expected, atol=1e-6)
        mixed += int(((shares[:4] > 0.01) & (shares[:4] < 0.99)).any(1).sum())
    assert mixed > 40


def test_mixup_draws_its_shares_from_the_beta_distribution():
    _, shares = apply(Mixup(alpha=0.4), KEYS[0], *many())
    kept = np.asarray(jnp.diagonal(shares))
    # Of a symmetric Beta distribution: mean 1/2, variance 1 / (4 (2 alpha + 1)).
    assert kept.mean() == pytest.approx(0.5, abs=0.05)
    assert kept.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.07)


def test_cutmix_replaces_one_rectangle():
    for key in KEYS[:20]:
        images, targets, valid = batch()
        found, _ = apply(CutMix(), key, images, targets, valid)
        for i in range(4):
            changed = np.abs(np.asarray(found[i, ..., 0]) - i / 10) > 1e-6
            rows, columns = changed.any(1), changed.any(0)
            assert changed.sum() == rows.sum() * columns.sum()


def test_the_two_take_turns():
    images, targets, valid = batch()

    def is_cut(augmentation, key) -> bool:
        found = np.asarray(apply(augmentation, key, images, targets, valid)[0][:4])
        return all(len(np.unique(picture)) <= 2 for picture in found) and any(
            len(np.unique(picture)) == 2 for picture in found
        )

    turns = [is_cut(MixupCutMix(switch=0.5), key) for key in KEYS]
    assert 8 < sum(turns) < 32
    assert not any(is_cut(MixupCutMix(switch=0), key) for key in KEYS[:10])


def test_probability_is_how_often_a_picture_is_mixed():
    _, shares = apply(Mixup(alpha=1, probability=0.3), KEYS[0], *many())
    mixed = float((jnp.diagonal(shares) < 1).mean())
    assert mixed == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Mixup, {"alpha": 0}),
        (CutMix, {"probability": 1.5}),
        (MixupCutMix, {"switch": -1}),
        (MixupCutMix, {"mixup_alpha": 1000}),
    ],
)
def test_options_out_of_range_are_refused(kind, options):
    with pytest.raises(OptionError, match=f"option '{next(iter(options))}'"):
        kind(**options)
