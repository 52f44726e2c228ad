"""Attention pooling: learned queries look over the places of the feature map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from vgg_jax.api import require

__all__ = ["Attention"]


class Attention(nnx.Module):
    """Attention pooling over the places of the feature map, then one logit a class.

    Each of some heads has a query of its own, and averages the places by how well they answer it:
    where global average pooling takes all places alike, this looks where the object is. Features
    are normalised first, one place by itself.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        num_classes: int,
        *,
        heads: int = 8,
        positions: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the head for features `[B, h, w, c]` with `feature_shape` `(h, w, c)`.

        Args:
            feature_shape: `(h, w, c)`.
            num_classes: Number of logits.
            heads: Number of queries, in [1, 64]; must divide the number of channels.
            positions: Whether the places have learned positions. Without them their order does not
                matter.
            dropout: Share of the pooled features that is set to zero in training, in [0, 1).
            rngs: Draws the parameters, and is dropout's generator.

        Raises:
            OptionError: If an option is out of range.
        """
        height, width, channels = feature_shape
        divides = 1 <= heads <= 64 and channels % heads == 0
        expected = f"a whole number in [1, 64] that divides the {channels} channels"
        require(divides, "attention", "heads", heads, expected)
        require(0 <= dropout < 1, "attention", "dropout", dropout, "a number in [0, 1)")
        draw = nnx.initializers.normal(0.02)
        self.norm = nnx.LayerNorm(channels, rngs=rngs)
        self.query = nnx.Param(draw(rngs.params(), (heads, channels // heads)))
        self.key = nnx.Linear(channels, channels, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(channels, channels, rngs=rngs)
        self.positions = (
            nnx.Param(draw(rngs.params(), (height * width, channels))) if positions else None
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.logits = nnx.Linear(channels, num_classes, rngs=rngs)

    def weights(self, features: jax.Array) -> jax.Array:
        """Return how much each place counts for each query: `[B, heads, h * w]`, sums of 1."""
        keys = self.key(self._places(features))
        return self._weights(keys)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        places = self._places(features)
        heads, size = self.query.shape
        values = self.value(places).reshape(*places.shape[:2], heads, size)
        pooled = jnp.einsum("bqn,bnqd->bqd", self._weights(self.key(places)), values)
        return self.logits(self.dropout(pooled.reshape(len(features), -1)))

    def _places(self, features: jax.Array) -> jax.Array:
        places = self.norm(features.reshape(len(features), -1, features.shape[-1]))
        return places if self.positions is None else places + self.positions[...]

    def _weights(self, keys: jax.Array) -> jax.Array:
        heads, size = self.query.shape
        keys = keys.reshape(*keys.shape[:2], heads, size)
        scores = jnp.einsum("qd,bnqd->bqn", self.query[...], keys) / jnp.sqrt(size)
        return jax.nn.softmax(scores, axis=-1)
