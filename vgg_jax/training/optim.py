"""Optimizers, with the semantics that Keras gives them."""

from __future__ import annotations

import jax
import optax

from vgg_jax.config import OptimizerName

SGD_MOMENTUM = 0.9


def make_optimizer(
    name: OptimizerName, *, learning_rate: float | jax.Array, weight_decay: float | jax.Array
) -> optax.GradientTransformation:
    """Build an optimizer.

    Args:
        name: rmsprop is Keras': decay 0.9, epsilon 1e-7 inside the root, no momentum. adam and
            adamw have Keras' epsilon, 1e-7. sgd has momentum 0.9.
        learning_rate: Factor of every update.
        weight_decay: Decoupled: each step takes `learning_rate * weight_decay` of every parameter
            off it, as Keras does for each of its optimizers. Both may be traced.
    """
    directions = {
        "rmsprop": lambda: optax.scale_by_rms(decay=0.9, eps=1e-7),
        "adam": lambda: optax.scale_by_adam(eps=1e-7),
        "adamw": lambda: optax.scale_by_adam(eps=1e-7),
        "sgd": lambda: optax.trace(decay=SGD_MOMENTUM),
    }
    return optax.chain(
        directions[name](), optax.add_decayed_weights(weight_decay), optax.scale(-learning_rate)
    )
