"""Checks of option values, as TOML or a command line gives them, against type annotations."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, cast


def fits(value: Any, annotation: Any) -> bool:
    """Tell whether a TOML value is of a type; an int passes for a float, a bool for neither."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list, Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        items = cast("Sequence[Any]", value)
        if origin is tuple and Ellipsis not in arguments:
            return len(items) == len(arguments) and all(map(fits, items, arguments))
        return all(fits(item, arguments[0]) for item in items)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def parse_size(text: str) -> int | None:
    """Return the bytes of a size such as `500MB`, `1.5 GB` or `4096`; None if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)b?", text.strip(), re.IGNORECASE)
    if match is None:
        return None
    number, unit = match.groups()
    return round(float(number) * 1000 ** " kmgt".index(unit.lower() or " "))


def spell(annotation: Any) -> str:
    """Say an annotation in words that a user knows."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "a word",
        bool: "true or false",
        type(None): "left out",
    }
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spell(argument) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (tuple, list, Sequence):
        items = [argument for argument in arguments if argument is not Ellipsis]
        return "a list of " + ", ".join(spell(item) for item in items)
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))
