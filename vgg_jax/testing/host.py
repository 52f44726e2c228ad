"""Rules for host augmentations."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_jax.contract import HostAugmentation
from vgg_jax.testing.report import Examination

_SIZES = ((32, 32), (40, 33), (128, 128))  # from the smallest that a training has
_KEYS = 8


def look_at_host(
    examination: Examination,
    item: HostAugmentation,
    twin: HostAugmentation,
    fixed: bool,
    calm: Any,
    reason: str,
) -> None:
    """Check a host augmentation; `twin` has its options, `calm` its neutral ones."""

    def draw(seed: int, image: np.ndarray) -> np.ndarray:
        return item.apply(np.random.default_rng(seed), image)

    for size in _SIZES:
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        before = image.copy()
        examination.look("keeps-shape", lambda i=image: _shape_fault(draw(0, i)))
        if examination.failed("keeps-shape"):
            return
        examination.look("keeps-dtype", lambda i=image: _dtype_fault(draw(0, i)))
        examination.look("same-key-same-output", lambda i=image: _unequal(draw(0, i), draw(0, i)))
        examination.look(
            "same-key-same-output",
            lambda i=image: _unequal(twin.apply(np.random.default_rng(0), i), draw(0, i)),
        )
        examination.look("leaves-its-input", lambda i=image, b=before: _unequal(i, b))
    image = np.random.default_rng(1).integers(0, 256, (*_SIZES[0], 3), np.uint8)
    if fixed:
        examination.skip("uses-its-key", "it is said to do the same for every key")
    else:
        examination.look(
            "uses-its-key", lambda: _fixed_fault([draw(s, image) for s in range(_KEYS)])
        )
    if calm is None:
        examination.skip("nothing-at-strength-zero", reason)
    else:
        examination.look(
            "nothing-at-strength-zero",
            lambda: _unequal(calm.apply(np.random.default_rng(0), image.copy()), image),
        )


def _shape_fault(found: Any) -> str | None:
    shape = getattr(found, "shape", None)
    right = shape is not None and len(shape) == 3 and shape[2] == 3
    return None if right else f"{shape or type(found).__name__}, not [H, W, 3]"


def _dtype_fault(found: np.ndarray) -> str | None:
    return None if found.dtype == np.uint8 else f"{found.dtype}, not uint8"


def _fixed_fault(outputs: list[np.ndarray]) -> str | None:
    same = all(np.array_equal(outputs[0], other) for other in outputs[1:])
    return f"{len(outputs)} keys give one output" if same else None


def _unequal(found: np.ndarray, wanted: np.ndarray) -> str | None:
    if found.shape != wanted.shape:
        return f"shapes {found.shape} and {wanted.shape}"
    count = int((found != wanted).any(-1).sum())
    return f"{count} of {wanted[..., 0].size} pixels differ" if count else None
