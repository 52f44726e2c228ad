"""Presets: chains that are known to be good, under one name."""

from __future__ import annotations

from vgg_jax.augment.colour import ColorJitter, Grayscale
from vgg_jax.augment.erasing import RandomErasing
from vgg_jax.augment.geometric import (
    CropResize,
    HeightShift,
    HorizontalFlip,
    Rotation,
    Shear,
    WidthShift,
    Zoom,
)
from vgg_jax.contract import Augmentation


def keras() -> tuple[Augmentation, ...]:
    """Augment as the well-known Keras recipe does.

    That is rotation 40, shifts 0.2, shear 0.2 (degrees), zoom 0.2 and horizontal flip, composed in
    the order of Keras' `apply_transform`: rotation @ shift @ shear @ zoom, then the flip.
    """
    return (
        Rotation(degrees=40),
        WidthShift(fraction=0.2),
        HeightShift(fraction=0.2),
        Shear(degrees=0.2),
        Zoom(fraction=0.2),
        HorizontalFlip(probability=0.5),
    )


def light() -> tuple[Augmentation, ...]:
    """Augment a little: for small changes of a network that knows such pictures already.

    Crops of at least 70% of the picture, horizontal flips, and slight changes of brightness,
    contrast and saturation.
    """
    return (
        CropResize(scale=(0.7, 1.0)),
        HorizontalFlip(probability=0.5),
        ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.0),
    )


def strong() -> tuple[Augmentation, ...]:
    """Augment much: for long trainings on few pictures.

    Crops of at least 35% of the picture, turns of up to 15 degrees, horizontal flips, changes of
    brightness, contrast, saturation and hue, one picture in ten grey, and one in four with a
    rectangle erased.
    """
    return (
        CropResize(scale=(0.35, 1.0)),
        Rotation(degrees=15),
        HorizontalFlip(probability=0.5),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05),
        Grayscale(probability=0.1),
        RandomErasing(probability=0.25),
    )
