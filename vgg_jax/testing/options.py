"""Rules on options, for heads and augmentations alike."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vgg_jax.errors import OptionError
from vgg_jax.plugin_options import Option, describe_options, option_types
from vgg_jax.testing.report import Examination

_BOUNDS = re.compile(r"in ([\[(])\s*(-?[\w.]+(?:e-\d+)?)\s*,\s*(-?[\w.]+(?:e-\d+)?)\s*([\])])")
_ONE_BOUND = re.compile(r"\b(at least|above) (-?[\d.]+(?:e-?\d+)?)")
_NUMBERS = (int, float)


def look_at_options(
    examination: Examination,
    factory: Any,
    reserved: Collection[str],
    positional: int,
    build: Callable[..., Any],
) -> None:
    """Check that options are keyword-only, typed, documented and validated.

    Args:
        examination: Takes the findings.
        factory: The plugin.
        reserved: Keywords that the contract passes.
        positional: How many positional arguments the contract passes.
        build: Builds the plugin with options by keyword.
    """
    examination.look("keyword-only-options", lambda: _signature_fault(factory, positional))
    options = describe_options(factory, reserved)
    types = option_types(factory)
    numeric = [option for option in options if types[option.name] in _NUMBERS]
    examination.look("documented-options", lambda: _documentation_fault(options, numeric))
    outside = {option.name: _outside(option, types[option.name]) for option in numeric}
    if not any(outside.values()):
        examination.skip("validated-options", "no option has a range of numbers")
    required = {o.name: _example(types[o.name]) for o in options if o.default is None}
    for name, values in outside.items():
        for value in values:
            examination.look(
                "validated-options", lambda n=name, v=value: _not_refused(build, required, n, v)
            )


def numeric_zeros(factory: Any) -> Mapping[str, Any]:
    """Return zero for each numeric option whose documented range begins with 0."""
    types = option_types(factory)
    return {
        option.name: types[option.name](0)
        for option in describe_options(factory)
        if types[option.name] in _NUMBERS and re.match(r"in \[0(\.0)?,", option.range)
    }


def _signature_fault(factory: Any, positional: int) -> str | None:
    parameters = list(inspect.signature(factory.__init__).parameters.values())[1:]
    if not inspect.isclass(factory):
        parameters = list(inspect.signature(factory).parameters.values())
    plain = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(plain) > positional:
        return f"{', '.join(plain[positional:])} can be given by position"
    untyped = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.annotation is p.empty]
    untyped = [name for name in untyped if name != "rngs"]
    return f"{', '.join(untyped)} has no type" if untyped else None


def _documentation_fault(options: Collection[Option], numeric: Collection[Option]) -> str | None:
    missing = [option.name for option in options if not option.meaning]
    if missing:
        return f"nothing is said of {', '.join(missing)}"
    unbounded = [option.name for option in numeric if not option.range]
    return f"no range is given for {', '.join(unbounded)}" if unbounded else None


def _outside(option: Option, kind: type) -> list[Any]:
    """Return values just beyond the documented bounds; NaN too where any number has a place."""
    match = _BOUNDS.search(option.meaning)
    if match is None:
        return _below(option, kind)
    low, high = (_number(text) for text in (match[2], match[3]))
    step = 1 if kind is int else 0.01
    values: list[Any] = []
    if low is not None and math.isfinite(low):
        values.append(kind(low) if match[1] == "(" else kind(low - step))
    if high is not None and math.isfinite(high):
        values.append(kind(high) if match[4] == ")" else kind(high + step))
    return [*values, math.nan] if kind is float else values


def _below(option: Option, kind: type) -> list[Any]:
    match = _ONE_BOUND.search(option.meaning)
    bound = _number(match[2].rstrip(".")) if match else None
    if match is None or bound is None:
        return []
    return [kind(bound) if match[1] == "above" else kind(bound - (1 if kind is int else 0.01))]


def _number(text: str) -> float | None:
    try:
        return float(text.replace("infinity", "inf"))
    except ValueError:  # the name of another option
        return None


def _example(kind: Any) -> Any:
    return {int: 1, float: 0.5, str: "x", bool: False}.get(kind)


def _not_refused(
    build: Callable[..., Any], required: Mapping[str, Any], name: str, value: Any
) -> str | None:
    try:
        build(**{**required, name: value})
    except OptionError:
        return None
    except Exception as error:  # a plugin may raise anything; it is what was seen
        return f"{name}={value} raises {type(error).__name__}, not OptionError"
    return f"{name}={value} is accepted"
