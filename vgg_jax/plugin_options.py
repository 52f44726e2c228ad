"""Options of a plugin: read from its signature and its docstring, and checked against them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
import itertools
import json
import re
import typing
from collections.abc import Collection, Mapping
from typing import Any, cast

from vgg_jax.errors import OptionError, PluginError, did_you_mean
from vgg_jax.options import fits, spell

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Note|Example)s?:\s*$")
_ENTRY = re.compile(r"^(\w+)(?: \([^)]*\))?:\s*(.*)$")
_RANGE = re.compile(
    r"\b(?:in [\[(][^\])]*[\])]|at least [-\w.]+|above [-\w.]+|below [-\w.]+|one of [\w, -]+)"
)


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a plugin.

    Attributes:
        name: As a user writes it.
        type: Its type, in words.
        default: Its default as a user would write it; None if it must be given.
        range: The part of `meaning` that says which values are allowed; empty if none does.
        meaning: What the plugin's docstring says of it; empty if it says nothing.
    """

    name: str
    type: str
    default: str | None
    range: str
    meaning: str


def describe_options(factory: Any, reserved: Collection[str] = ()) -> tuple[Option, ...]:
    """Return the keyword-only parameters of a plugin, those in `reserved` left out."""
    hints, meanings = option_types(factory), _documented(factory)
    defaults = _defaults(factory, reserved)
    found: list[Option] = []
    for name in _keywords(factory, reserved):
        meaning = meanings.get(name, "")
        allowed = _RANGE.search(meaning)
        default = toml_value(defaults[name]) if name in defaults else None
        found.append(
            Option(name, spell(hints[name]), default, allowed[0] if allowed else "", meaning)
        )
    return tuple(found)


def resolved_options(
    factory: Any, options: Mapping[str, Any], reserved: Collection[str] = ()
) -> dict[str, Any]:
    """Return the value of each option, in `options` or by default, as JSON gives it back."""
    return json_values(_defaults(factory, reserved) | dict(options))


def json_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON gives them back, tuples as lists.

    What JSON cannot hold, such as a function, is left out: nobody can type it either.
    """
    held: dict[str, Any] = {}
    for name, value in options.items():
        with contextlib.suppress(TypeError, ValueError):
            held[name] = json.loads(json.dumps(value))
    return held


def describe_purpose(factory: Any) -> str:
    """Return a plugin's docstring up to its sections on options, errors and so on."""
    lines = itertools.takewhile(
        lambda line: not _SECTION.match(line), (inspect.getdoc(factory) or "").splitlines()
    )
    return "\n".join(lines).strip()


def check_options(
    owner: str, factory: Any, options: Mapping[str, Any], reserved: Collection[str] = ()
) -> None:
    """Raise `OptionError` unless each option is a keyword of `factory` and of its type.

    Args:
        owner: The plugin's name, for messages.
        factory: The plugin.
        options: Values by name, as TOML gives them.
        reserved: Keywords that the contract passes, which are no options.
    """
    parameters = _keywords(factory, reserved)
    hints = option_types(factory)
    for name, value in options.items():
        if name not in parameters:
            raise OptionError(
                f"{owner}: no option named {name!r}.{did_you_mean(name, parameters)} "
                f"Options: {', '.join(parameters) or 'none'}."
            )
        if not fits(value, hints[name]):
            raise OptionError(
                f"{owner}: option {name!r} is {value!r}, but must be {spell(hints[name])}."
            )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise OptionError(
                f"{owner}: option {name!r}, {spell(hints[name])}, is missing; write"
                f" {owner}:{name}=VALUE."
            )


def option_types(factory: Any) -> Mapping[str, Any]:
    """Return the annotated type of each parameter; Any where there is none.

    Raises:
        PluginError: If an annotation cannot be resolved.
    """
    try:
        hints = typing.get_type_hints(_callable(factory))
    except (NameError, TypeError, AttributeError) as error:
        raise PluginError(
            f"The options of {getattr(factory, '__name__', factory)!r} cannot be read: {error}."
            " Their types must be importable where it is defined."
        ) from error
    return collections.defaultdict(lambda: Any, hints)


def as_python(value: Any, annotation: Any) -> Any:
    """Turn lists into tuples, which a frozen dataclass can hold, and 1 into 1.0 for a float."""
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    return float(value) if annotation is float else value


def toml_value(value: Any) -> str:
    """Write a value as it would stand in a TOML inline table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(toml_value, cast('list[Any]', value)))}]"
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return f"{{{','.join(f'{toml_value(name)}={toml_value(held)}' for name, held in items)}}}"
    if isinstance(value, str):
        # JSON's escapes are TOML's; only DEL is one more that TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)  # numbers, dates and times; None, where a default is shown


def _keywords(factory: Any, reserved: Collection[str]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(_callable(factory)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in reserved
    }


def _defaults(factory: Any, reserved: Collection[str]) -> dict[str, Any]:
    """Return the defaults of the options that have one."""
    defaults = {
        name: parameter.default
        for name, parameter in _keywords(factory, reserved).items()
        if parameter.default is not parameter.empty
    }
    if dataclasses.is_dataclass(factory):
        for field in dataclasses.fields(factory):
            if field.name in defaults and field.default_factory is not dataclasses.MISSING:
                defaults[field.name] = field.default_factory()  # the signature has a placeholder
    return defaults


def _callable(factory: Any) -> Any:
    """Return what takes the options; a class's own signature may be hidden by its metaclass."""
    return factory.__init__ if inspect.isclass(factory) else factory


def _documented(factory: Any) -> dict[str, str]:
    """Return what the sections `Args` and `Attributes` say, by name."""
    texts = [inspect.getdoc(factory) or ""]
    if inspect.isclass(factory):
        texts.append(inspect.getdoc(factory.__init__) or "")
    found: dict[str, list[str]] = {}
    for text in texts:
        inside, name = False, ""
        for line in text.splitlines():
            section = _SECTION.match(line)
            if section:
                inside, name = section[1] in ("Args", "Attributes"), ""
            elif inside and line.strip():
                entry = _ENTRY.match(line.strip())
                indent = len(line) - len(line.lstrip())
                if entry and indent <= 4:
                    name = entry[1]
                    found[name] = [entry[2]]
                elif name:
                    found[name].append(line.strip())
    return {name: " ".join(filter(None, lines)) for name, lines in found.items()}
