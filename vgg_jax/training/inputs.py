"""What steps of training and evaluation take: a batch, or a chunk of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

_Carry = TypeVar("_Carry")
_Outputs = TypeVar("_Outputs")


class Inputs(NamedTuple):
    """A batch that went through the prefix.

    Or a chunk of batches, one step each: then there is an axis of them before `B`. Those without a
    valid example come last, and nothing is done for them.

    Attributes:
        features: `[B, …]`, as `Steps.features` gives them and `Steps.pool` leaves them.
        targets: Class numbers, int32 `[B]`, or the share of each class, float32 `[B, K]`.
        valid: bool `[B]`, false for padding.
    """

    features: jax.Array
    targets: jax.Array
    valid: jax.Array

    @property
    def is_chunk(self) -> bool:
        """Whether there is an axis of batches."""
        return self.valid.ndim > 1

    @property
    def batch_count(self) -> int:
        """How many batches there are, without those that are padding alone."""
        return int(np.asarray(self.valid).any(1).sum()) if self.is_chunk else 1

    def batch(self, i: jax.Array | int) -> Inputs:
        """Return one of a chunk's batches."""
        return jax.tree.map(lambda leaf: leaf[i], self)


def fold_batches(step: Callable[[_Carry, Inputs], _Carry], carry: _Carry, inputs: Inputs) -> _Carry:
    """Take a step on a batch, or on each batch of a chunk in turn, in a loop on the device."""
    if not inputs.is_chunk:
        return step(carry, inputs)

    def one(i: jax.Array, carry: _Carry) -> _Carry:
        return step(carry, inputs.batch(i))

    # As often as there are batches, so that one program serves every chunk.
    return jax.lax.fori_loop(0, inputs.valid.any(1).sum(), one, carry)


def map_batches(evaluate: Callable[[Inputs], _Outputs], inputs: Inputs) -> _Outputs:
    """Return what `evaluate` gives for each batch of a chunk, stacked; zeros for padding alone."""
    outputs = jax.eval_shape(evaluate, inputs.batch(0))
    count = len(inputs.valid)
    zeros = jax.tree.map(lambda one: jnp.zeros((count, *one.shape), one.dtype), outputs)

    def one(i: jax.Array, found: _Outputs) -> _Outputs:
        of_batch = evaluate(inputs.batch(i))
        return jax.tree.map(lambda all_, new: all_.at[i].set(new), found, of_batch)

    return jax.lax.fori_loop(0, inputs.valid.any(1).sum(), one, zeros)
