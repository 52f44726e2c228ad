"""The classes of ImageNet: what the 1,000 outputs of the published weights' top stand for.

They are listed in `imagenet_classes.txt`, which says where they are from.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """One class: its WordNet id, such as `n02123394`, and its name, such as `Persian cat`."""

    wnid: str
    name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1,000 classes in the order of their numbers; no two share a name."""
    file = importlib.resources.files("vgg_jax.model") / "imagenet_classes.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(ImageNetClass(*line.split("\t")) for line in lines if not line.startswith("#"))


def class_names(count: int) -> list[str]:
    """Return the names of so many classes: ImageNet's for 1,000, else `class 0`, `class 1`, …."""
    classes = imagenet_classes()
    if count == len(classes):
        return [imagenet_class.name for imagenet_class in classes]
    return [f"class {number}" for number in range(count)]
