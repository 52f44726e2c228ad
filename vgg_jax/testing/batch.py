"""Rules for batch augmentations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.augment.chain import Chain
from vgg_jax.contract import BatchAugmentation
from vgg_jax.testing.report import Examination

_ROWS, _CLASSES, _SIDE = 8, 4, 12
_TOLERANCE = 1e-5
_KEYS = 6
_Batch = tuple[jax.Array, jax.Array, jax.Array]


def look_at_batch(
    examination: Examination, item: BatchAugmentation, calm: Any, reason: str
) -> None:
    """Check a batch augmentation; `calm` has its neutral options, or None for a `reason`."""
    keys = jax.random.split(jax.random.key(0), _KEYS)
    whole, padded = _batch(_ROWS, 0.0), _batch(_ROWS - 3, jnp.nan)

    def call(key: jax.Array, batch: _Batch = whole) -> tuple[jax.Array, jax.Array]:
        return item.apply(key, *batch)

    examination.look("keeps-shape", lambda: _shape_fault(call(keys[0]), whole))
    if examination.failed("keeps-shape"):
        return
    examination.look("keeps-dtype", lambda: _dtype_fault(call(keys[0])))
    examination.look("same-key-same-output", lambda: _differs(call(keys[0]), call(keys[0]), 0.0))
    examination.look(
        "uses-its-key",
        lambda: (
            None
            if any(_differs(call(key), call(keys[0])) for key in keys[1:])
            else f"{_KEYS} keys give one output"
        ),
    )
    examination.look("jit-equals-eager", lambda: _differs(jax.jit(call)(keys[1]), call(keys[1])))
    examination.look("no-recompilation", lambda: _recompilation_fault(item, keys, whole))
    for key in keys:
        examination.look("keeps-range", lambda k=key: _range_fault(call(k)[0]))
        examination.look("targets-stay-shares", lambda k=key: _targets_fault(call(k)[1]))
        examination.look("padding-stays-out", lambda k=key: _padding_fault(call(k, padded), padded))
    if calm is None:
        examination.skip("nothing-at-strength-zero", reason)
    else:
        examination.look(
            "nothing-at-strength-zero",
            lambda: _differs(calm.apply(keys[0], *whole), whole[:2]),
        )


def _batch(valid: int, padding: float) -> _Batch:
    rng = np.random.default_rng(0)
    is_valid = jnp.arange(_ROWS) < valid
    images = jnp.asarray(rng.uniform(0.02, 0.98, (_ROWS, _SIDE, _SIDE, 3)), jnp.float32)
    targets = jax.nn.one_hot(jnp.arange(_ROWS) % _CLASSES, _CLASSES)
    return (
        jnp.where(is_valid[:, None, None, None], images, padding),
        jnp.where(is_valid[:, None], targets, padding),
        is_valid,
    )


def _shape_fault(found: Any, batch: _Batch) -> str | None:
    if not isinstance(found, tuple) or len(found) != 2:
        return f"it returns a {type(found).__name__}, not images and targets"
    shapes = [getattr(part, "shape", None) for part in found]
    wanted = [part.shape for part in batch[:2]]
    return None if shapes == wanted else f"{shapes}, not {wanted}"


def _dtype_fault(found: tuple[jax.Array, jax.Array]) -> str | None:
    wrong = [str(part.dtype) for part in found if part.dtype != jnp.float32]
    return f"{' and '.join(wrong)}, not float32" if wrong else None


def _differs(found: Any, wanted: Any, tolerance: float = _TOLERANCE) -> str | None:
    largest = max(float(jnp.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
    return None if largest <= tolerance else f"they differ by {largest:.2g}"


def _range_fault(images: jax.Array) -> str | None:
    low, high = float(images.min()), float(images.max())
    return None if -1e-6 <= low <= high <= 1 + 1e-6 else f"values from {low:.4g} to {high:.4g}"


def _targets_fault(targets: jax.Array) -> str | None:
    sums = targets.sum(1)
    if float(jnp.abs(sums - 1).max()) > _TOLERANCE:
        return f"targets that added up to 1 add up to {float(sums.min()):.4g}"
    return _range_fault(targets)


def _padding_fault(found: tuple[jax.Array, jax.Array], batch: _Batch) -> str | None:
    for name, part in zip(("images", "targets"), found, strict=True):
        if not bool(jnp.isfinite(part[batch[2]]).all()):
            return f"values of padding (here NaN) are in the {name} of valid rows"
    return None


def _recompilation_fault(item: BatchAugmentation, keys: jax.Array, batch: _Batch) -> str | None:
    traced = 0

    def mix(chain: Chain, key: jax.Array, batch: _Batch) -> tuple[jax.Array, jax.Array]:
        nonlocal traced
        traced += 1
        return chain.mix(key, *batch)

    compiled = jax.jit(mix, static_argnums=0)
    for key in keys[:3]:
        compiled(Chain((item,)), key, batch)
    return None if traced == 1 else f"three calls traced it {traced} times"
