"""Freezing, decided in one place: a label, trained or frozen, for each parameter.

Parameters are held as one flat mapping {path: array}; a path is `backbone/<layer>/kernel` or
`head/…`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

import optax

from vgg_jax.layers import HEAD, LAYERS

Label = Literal["trained", "frozen"]
T = TypeVar("T")


def label_parameters(paths: Iterable[str], boundary: str) -> dict[str, Label]:
    """Label each parameter: trained from layer `boundary` on; `head` freezes the backbone."""
    return {path: "trained" if _comes_after(path, boundary) else "frozen" for path in paths}


def split_parameters(
    parameters: Mapping[str, T], labels: Mapping[str, Label]
) -> tuple[dict[str, T], dict[str, T]]:
    """Split a mapping by path into its (trained, frozen) parts."""
    trained = {path: value for path, value in parameters.items() if labels[path] == "trained"}
    frozen = {path: value for path, value in parameters.items() if labels[path] == "frozen"}
    return trained, frozen


def train_only(
    tx: optax.GradientTransformation, labels: Mapping[str, Label]
) -> optax.GradientTransformation:
    """Apply `tx` to what is labelled trained; hold the rest still, weight decay included.

    `labels` must have the paths of the tree that the optimizer sees, which is the trained part
    alone.
    """
    # Not optax.masked: it passes raw gradients through where the mask is False.
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, dict(labels))


def _comes_after(path: str, boundary: str) -> bool:
    part, layer = path.split("/")[:2]
    if part == HEAD:
        return True
    return boundary != HEAD and LAYERS.index(layer) >= LAYERS.index(boundary)
