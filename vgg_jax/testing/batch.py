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
    examination: Examination,
    item: BatchAugmentation,
    twin: BatchAugmentation,
    fixed: bool,
    calm: Any,
    reason: str,
) -> None:
    """Check a batch augmentation; `twin` has its options, `calm` its neutral ones."""
    keys = jax.random.split(jax.random.key(0), _KEYS)
    whole, padded, otherwise = _batch(_ROWS), _batch(_ROWS - 3), _batch(_ROWS - 3, 1.0)

    def call(key: jax.Array, batch: _Batch = whole) -> tuple[jax.Array, jax.Array]:
        return item.apply(key, *batch)

    examination.look("keeps-shape", lambda: _shape_fault(call(keys[0]), whole))
    if examination.failed("keeps-shape"):
        return
    examination.look("keeps-dtype", lambda: _dtype_fault(call(keys[0])))
    examination.look("same-key-same-output", lambda: _differs(call(keys[0]), call(keys[0]), 0.0))
    examination.look(
        "same-key-same-output", lambda: _differs(twin.apply(keys[0], *whole), call(keys[0]), 0.0)
    )
    if fixed:
        examination.skip("uses-its-key", "it is said to do the same for every key")
    else:
        examination.look("uses-its-key", lambda: _fixed_fault([call(key) for key in keys]))
    examination.look("jit-equals-eager", lambda: _differs(jax.jit(call)(keys[1]), call(keys[1])))
    examination.look("no-recompilation", lambda: _recompilation_fault(item, keys, whole))
    for key in keys:
        examination.look("keeps-range", lambda k=key: _range_fault(call(k)[0]))
        examination.look("targets-stay-shares", lambda k=key: _targets_fault(call(k)[1]))
        examination.look(
            "padding-stays-out",
            lambda k=key: _padding_fault(call(k, padded), call(k, otherwise), padded[2]),
        )
    if calm is None:
        examination.skip("nothing-at-strength-zero", reason)
    else:
        examination.look(
            "nothing-at-strength-zero",
            lambda: _differs(calm.apply(keys[0], *whole), whole[:2]),
        )


def _batch(valid: int, padding: float = 0.0) -> _Batch:
    """Return a batch whose rows from `valid` on are padding, pictures of the grey `padding`."""
    rng = np.random.default_rng(0)
    is_valid = jnp.arange(_ROWS) < valid
    images = jnp.asarray(rng.uniform(0.02, 0.98, (_ROWS, _SIDE, _SIDE, 3)), jnp.float32)
    classes = jnp.where(is_valid, jnp.arange(_ROWS) % _CLASSES, int(padding))
    return (
        jnp.where(is_valid[:, None, None, None], images, padding),
        jax.nn.one_hot(classes, _CLASSES),
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
    largest = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(found, wanted, strict=True)
    )
    return None if largest <= tolerance else f"they differ by {largest:.2g}"


def _range_fault(images: jax.Array | np.ndarray) -> str | None:
    images = np.asarray(images)
    low, high = float(images.min()), float(images.max())
    return None if -1e-6 <= low <= high <= 1 + 1e-6 else f"values from {low:.4g} to {high:.4g}"


def _targets_fault(targets: jax.Array | np.ndarray) -> str | None:
    targets = np.asarray(targets)
    sums = targets.sum(1)
    if float(np.abs(sums - 1).max()) > _TOLERANCE:
        return f"targets that added up to 1 add up to {float(sums.min()):.4g}"
    return _range_fault(targets)


def _padding_fault(
    found: tuple[jax.Array, jax.Array], otherwise: tuple[jax.Array, jax.Array], valid: jax.Array
) -> str | None:
    for name, one, other in zip(("images", "targets"), found, otherwise, strict=True):
        rows = np.asarray(valid)
        if _differs((np.asarray(one)[rows],), (np.asarray(other)[rows],)):
            return f"values of padding are in the {name} of valid rows"
    return None


def _fixed_fault(outputs: list[tuple[jax.Array, jax.Array]]) -> str | None:
    changing = any(_differs(other, outputs[0]) for other in outputs[1:])
    return None if changing else f"{len(outputs)} keys give one output"


def _recompilation_fault(item: BatchAugmentation, keys: jax.Array, batch: _Batch) -> str | None:
    traced = 0

    def mix(chain: Chain, key: jax.Array, batch: _Batch) -> tuple[jax.Array, jax.Array]:
        nonlocal traced
        traced += 1
        return chain.mix(key, *batch)

    compiled = jax.jit(mix, static_argnums=0)
    for key in keys[:3]:
        compiled.eval_shape(Chain((item,)), key, batch)  # which traces as a call does
    return None if traced == 1 else f"three calls traced it {traced} times"
