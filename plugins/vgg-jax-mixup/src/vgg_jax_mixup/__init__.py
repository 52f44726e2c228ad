"""mixup and CutMix: pictures of a batch are mixed in pairs, and their targets with them.

Each picture gets a partner, drawn among the valid rows of the batch; rows of padding stay as they
are and are nobody's partner.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from vgg_jax.api import BatchAugmentation, require

__all__ = ["CutMix", "Mixup", "MixupCutMix"]

_Mixed = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup(BatchAugmentation):
    """Blend each picture with another one (Zhang et al., "mixup", 2018).

    The share that is kept is drawn for each picture, from a Beta distribution; where it is below a
    half, the partner's picture is the stronger one.

    Attributes:
        alpha: Both parameters of the Beta distribution, in (0, 100]: small ones give shares near 0
            and 1, and 1 gives all shares alike. The paper has 0.1 to 0.4 for ImageNet.
        probability: How often a picture is mixed at all, in [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    alpha: float = 0.2
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        _require_options("mixup", self.alpha, self.probability)

    def apply(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> _Mixed:
        """Return the blended images `[B, H, W, 3]` and targets `[B, K]`."""
        partner_key, share_key, often_key = jax.random.split(key, 3)
        partner = draw_partners(partner_key, valid)
        share = _shares(share_key, self.alpha, len(images))
        share = _sometimes(often_key, self.probability, valid, share)
        return _blend(images, images[partner], share), _blend(targets, targets[partner], share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutMix(BatchAugmentation):
    """Replace a rectangle of each picture by that of another one (Yun et al., "CutMix", 2019).

    The rectangle has the proportions of the picture, and its middle lies anywhere; what hangs over
    the edge is cut, and the targets are mixed by the area that is left.

    Attributes:
        alpha: Both parameters of the Beta distribution that the area comes from, in (0, 100]. The
            paper has 1: every area alike.
        probability: How often a picture is mixed at all, in [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        _require_options("cutmix", self.alpha, self.probability)

    def apply(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> _Mixed:
        """Return the images `[B, H, W, 3]` with rectangles replaced, and targets `[B, K]`."""
        partner_key, share_key, place_key, often_key = jax.random.split(key, 4)
        rows, height, width, _ = images.shape
        partner = draw_partners(partner_key, valid)
        share = _shares(share_key, self.alpha, rows)
        share = _sometimes(often_key, self.probability, valid, share)
        side = jnp.sqrt(1 - share)
        middle_y, middle_x = jax.random.uniform(place_key, (2, rows))
        inside_y = _stretch(middle_y, side, height)
        inside_x = _stretch(middle_x, side, width)
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        kept = 1 - inside.mean((1, 2))
        mixed = jnp.where(inside[..., None], images[partner], images)
        return mixed, _blend(targets, targets[partner], kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixupCutMix(BatchAugmentation):
    """Apply mixup to some batches and CutMix to the others, as timm's `Mixup` does.

    Attributes:
        mixup_alpha: As `alpha` of mixup, in (0, 100]; timm's recipes have 0.8.
        cutmix_alpha: As `alpha` of CutMix, in (0, 100].
        switch: How often it is CutMix, in [0, 1].
        probability: How often a picture is mixed at all, in [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch: float = 0.5
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            require(0 < value <= 100, "mixup-cutmix", name, value, "a number in (0, 100]")
        for name in ("switch", "probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, "mixup-cutmix", name, value, "a number in [0, 1]")

    def apply(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> _Mixed:
        """Return the mixed images `[B, H, W, 3]` and targets `[B, K]`."""
        switch_key, mix_key = jax.random.split(key)
        mixup = Mixup(alpha=self.mixup_alpha, probability=self.probability)
        cutmix = CutMix(alpha=self.cutmix_alpha, probability=self.probability)
        cut = cutmix.apply(mix_key, images, targets, valid)
        blended = mixup.apply(mix_key, images, targets, valid)
        is_cut = jax.random.uniform(switch_key) < self.switch
        # Both are cheap beside a training step.
        return jnp.where(is_cut, cut[0], blended[0]), jnp.where(is_cut, cut[1], blended[1])


def draw_partners(key: jax.Array, valid: jax.Array) -> jax.Array:
    """Draw a permutation `[B]` of the valid rows; rows of padding are their own partners."""
    rows = jnp.arange(len(valid))
    # Valid rows first, in their order; and valid rows first, in a drawn order.
    places = jnp.argsort(~valid, stable=True)
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(key, rows.shape), 2.0))
    drawn = jnp.zeros_like(rows).at[places].set(order)
    return jnp.where(valid, drawn, rows)


def _shares(key: jax.Array, alpha: float, rows: int) -> jax.Array:
    return jax.random.beta(key, alpha, alpha, (rows,))


def _sometimes(key: jax.Array, probability: float, valid: jax.Array, share: jax.Array) -> jax.Array:
    """Return a share of 1, which keeps all, for rows of padding and for some others."""
    mixed = valid & (jax.random.uniform(key, share.shape) < probability)
    return jnp.where(mixed, share, 1.0)


def _blend(own: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
    share = share.reshape(-1, *[1] * (own.ndim - 1))
    return jnp.where(share == 1, own, share * own + (1 - share) * partner)


def _stretch(middle: jax.Array, side: jax.Array, size: int) -> jax.Array:
    """Return which pixels `[B, size]` of a line lie within half a side of a middle, `[B]`."""
    pixels = (jnp.arange(size) + 0.5) / size
    return jnp.abs(pixels - middle[:, None]) < side[:, None] / 2


def _require_options(owner: str, alpha: float, probability: float) -> None:
    require(0 < alpha <= 100 and math.isfinite(alpha), owner, "alpha", alpha, "in (0, 100]")
    expected = "a number in [0, 1]"
    require(0 <= probability <= 1, owner, "probability", probability, expected)
