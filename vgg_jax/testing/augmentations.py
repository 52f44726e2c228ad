"""Rules for augmentations."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.augment.chain import Chain
from vgg_jax.contract import (
    Augmentation,
    BatchAugmentation,
    GeometricAugmentation,
    HostAugmentation,
    PixelAugmentation,
)
from vgg_jax.errors import OptionError
from vgg_jax.testing.batch import look_at_batch
from vgg_jax.testing.host import look_at_host
from vgg_jax.testing.options import look_at_options, numeric_zeros
from vgg_jax.testing.report import Examination, Report

_SIZES = ((32, 32), (40, 33))  # the smallest that a training has, and one that is no square
_LARGE = (128, 128)
_TOLERANCE = 1e-5
_KEYS = 8


def check_augmentation(
    augmentation: Any,
    *,
    fixed: bool = False,
    neutral: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Check an augmentation, or each of a preset's, against the contract.

    Args:
        augmentation: Its class; or the preset's function; or one that was built.
        fixed: Whether it is meant to do the same for every random key.
        neutral: Options with which it changes nothing. By default its class attribute `neutral`;
            else `probability=0`; else zero for every number whose range begins with 0.
        **options: To build it with.

    Raises:
        PluginContractError: If it breaks rules; the text names each.
    """
    examine_augmentation(augmentation, fixed=fixed, neutral=neutral, **options).raise_for_failures()


def examine_augmentation(
    factory: Any,
    *,
    fixed: bool = False,
    neutral: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Do what `check_augmentation` does, and return what was found instead of raising."""
    examination = Examination()
    if isinstance(factory, Augmentation):
        items, subject = [factory], type(factory).__name__
    else:
        subject = getattr(factory, "__name__", repr(factory))
        items = _build(examination, factory, options)
    if inspect.isclass(factory) and items:
        look_at_options(examination, factory, (), 0, factory)
    for item in items:
        given = neutral if neutral is not None else _neutral(type(item))
        _look_at(examination, item, fixed, given)
    return examination.report(subject)


def _build(examination: Examination, factory: Any, options: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []

    def build() -> str | None:
        built = factory(**options)
        items = list(built) if isinstance(built, (tuple, list)) else [built]
        for item in items:
            if not isinstance(item, Augmentation):
                return f"it makes a {type(item).__name__}, not an augmentation of vgg_jax.api"
        if not items:
            return "it makes no augmentation"
        found.extend(items)
        return None

    examination.look("can-be-built", build)
    return found


def _neutral(kind: type) -> Mapping[str, Any] | None:
    declared = getattr(kind, "neutral", None)
    if declared is not None:
        return declared
    if dataclasses.is_dataclass(kind):
        if "probability" in {field.name for field in dataclasses.fields(kind)}:
            return {"probability": 0.0}
        return numeric_zeros(kind) or None
    return None


def _look_at(
    examination: Examination, item: Augmentation, fixed: bool, neutral: Mapping[str, Any] | None
) -> None:
    examination.look("hashable", lambda: _hash_fault(item))
    calm, reason = _calm(item, neutral)
    if isinstance(item, HostAugmentation):
        look_at_host(examination, item, _twin(item), fixed, calm, reason)
    elif isinstance(item, BatchAugmentation):
        look_at_batch(examination, item, _twin(item), fixed, calm, reason)
    elif isinstance(item, (PixelAugmentation, GeometricAugmentation)):
        _look_at_image_augmentation(examination, item, fixed, calm, reason)
    else:
        kind = type(item).__name__
        examination.look("can-be-built", lambda: f"{kind} is of none of the four kinds")


def _twin(item: Any) -> Any:
    """Build an augmentation anew with the same options: nothing may be drawn then."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return dataclasses.replace(item)
    return item


def _calm(item: Any, neutral: Mapping[str, Any] | None) -> tuple[Any, str]:
    """Return the augmentation with its neutral options, or why there is none."""
    if neutral is None:
        return None, "no option is a strength; a class attribute `neutral` may name some"
    try:
        return dataclasses.replace(item, **neutral), ""
    except (OptionError, TypeError) as error:
        return None, f"neutral options {dict(neutral)} cannot be used: {error}"


def _hash_fault(item: Any) -> str | None:
    if not dataclasses.is_dataclass(item) or isinstance(item, type):
        return f"{type(item).__name__} is no dataclass"
    twin = dataclasses.replace(item)
    if hash(twin) != hash(item) or twin != item:
        return "two with the same options are not equal"
    return None


def _look_at_image_augmentation(
    examination: Examination,
    item: PixelAugmentation | GeometricAugmentation,
    fixed: bool,
    calm: Any,
    reason: str,
) -> None:
    keys = jax.random.split(jax.random.key(0), _KEYS)
    twin = _twin(item)
    for size in _SIZES:
        image = _picture(size)
        call = _call_of(item, image)
        examination.look("keeps-shape", lambda c=call, i=image: _shape_fault(item, c(keys[0]), i))
        if examination.failed("keeps-shape"):
            return
        examination.look("keeps-dtype", lambda c=call: _dtype_fault(c(keys[0])))
        examination.look(
            "same-key-same-output", lambda c=call: _differs(c(keys[0]), c(keys[0]), 0.0)
        )
        examination.look(
            "same-key-same-output",
            lambda c=call, i=image: _differs(_call_of(twin, i)(keys[0]), c(keys[0]), 0.0),
        )
        if size == _SIZES[0]:  # the next compiles, too
            examination.look(
                "jit-equals-eager", lambda c=call: _differs(jax.jit(c)(keys[1]), c(keys[1]))
            )
        examination.look("vmap-equals-loop", lambda c=call: _vmap_fault(c, keys))
    if not examination.failed("jit-equals-eager"):
        _look_at_large(examination, item, twin, keys[0])
    image = _picture(_SIZES[0])
    call = _call_of(item, image)
    if fixed:
        examination.skip("uses-its-key", "it is said to do the same for every key")
    else:
        examination.look("uses-its-key", lambda: _fixed_fault([call(key) for key in keys]))
    examination.look("no-recompilation", lambda: _recompilation_fault(item, keys))
    chain = jax.jit(Chain((item,)).apply)
    for picture in (image, jnp.zeros_like(image), jnp.ones_like(image)):
        if isinstance(item, PixelAugmentation):
            examination.look(
                "keeps-range",
                lambda p=picture: _range_fault(jnp.stack([item.apply(k, p) for k in keys])),
            )
        else:
            examination.look(
                "keeps-range",
                lambda p=picture: _range_fault(chain(keys, jnp.stack([p] * _KEYS))),
            )
    if calm is None:
        examination.skip("nothing-at-strength-zero", reason)
    else:
        still = jnp.eye(3) if isinstance(item, GeometricAugmentation) else image
        examination.look(
            "nothing-at-strength-zero",
            lambda: next(
                filter(None, (_differs(_call_of(calm, image)(k), still) for k in keys)), None
            ),
        )


def _look_at_large(
    examination: Examination,
    item: PixelAugmentation | GeometricAugmentation,
    twin: Any,
    key: jax.Array,
) -> None:
    """Check what may depend on the size: from the programs, since compiling them takes longest."""
    image = _picture(_LARGE)
    calls = [_call_of(one, image) for one in (item, item, twin)]
    examination.look(
        "keeps-shape", lambda: _shape_fault(item, jax.eval_shape(calls[0], key), image)
    )
    if examination.failed("keeps-shape"):
        return
    examination.look("keeps-dtype", lambda: _dtype_fault(jax.eval_shape(calls[0], key)))

    def differ() -> str | None:
        programs = {jax.jit(call).lower(key).as_text() for call in calls}
        if len(programs) == 1:  # with all constants, so that they do the same
            return None
        wanted = calls[0](key)
        return next(filter(None, (_differs(call(key), wanted, 0.0) for call in calls[1:])), None)

    examination.look("same-key-same-output", differ)


def _call_of(item: Any, image: jax.Array) -> Callable[[jax.Array], jax.Array]:
    if isinstance(item, GeometricAugmentation):
        return lambda key: item.matrix(key, *image.shape[:2])
    return lambda key: item.apply(key, image)


def _picture(size: tuple[int, int]) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.uniform(0.02, 0.98, (*size, 3)), jnp.float32)


def _shape_fault(item: Any, found: Any, image: jax.Array) -> str | None:
    wanted = (3, 3) if isinstance(item, GeometricAugmentation) else image.shape
    shape = getattr(found, "shape", type(found).__name__)
    return None if shape == wanted else f"{shape}, not {wanted}"


def _dtype_fault(found: jax.Array | jax.ShapeDtypeStruct) -> str | None:
    return None if found.dtype == jnp.float32 else f"{found.dtype}, not float32"


def _range_fault(found: jax.Array) -> str | None:
    low, high = float(found.min()), float(found.max())
    return None if 0 <= low <= high <= 1 + 1e-6 else f"values from {low:.4g} to {high:.4g}"


def _differs(found: Any, wanted: Any, tolerance: float = _TOLERANCE) -> str | None:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    largest = float(np.abs(found - wanted).max())
    # Matrices hold pixels, so that their rounding errors grow with them.
    allowed = tolerance * max(1.0, float(np.abs(wanted).max()))
    return None if largest <= allowed else f"they differ by {largest:.2g}"


def _vmap_fault(call: Callable[[jax.Array], jax.Array], keys: jax.Array) -> str | None:
    vectorised = jax.jit(jax.vmap(call))  # one program, as in training, not one an operation
    return _differs(vectorised(keys), jnp.stack([call(key) for key in keys]))


def _fixed_fault(outputs: list[Any]) -> str | None:
    first = np.asarray(outputs[0])
    same = all(np.array_equal(first, other) for other in outputs[1:])
    return f"{len(outputs)} keys give one output" if same else None


def _recompilation_fault(item: Augmentation, keys: jax.Array) -> str | None:
    traced = 0

    def apply(chain: Chain, key: jax.Array, images: jax.Array) -> jax.Array:
        nonlocal traced
        traced += 1
        return chain.apply(key, images)

    compiled = jax.jit(apply, static_argnums=0)
    images = jnp.stack([_picture(_SIZES[0])] * 2)
    for i in range(3):
        same = dataclasses.replace(item)  # pyright: ignore[reportArgumentType]
        # It traces as a call does.
        compiled.eval_shape(Chain((same,)), keys[i : i + 2], images * (1 - 0.1 * i))
    return None if traced == 1 else f"three calls traced it {traced} times"
