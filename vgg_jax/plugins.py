"""Heads and augmentations as plugins: found through entry points, listed without importing any.

A user names one as `REF[:OPTIONS]`: REF is a name, or `package/name` where two packages claim a
name; OPTIONS is the inside of a TOML inline table in which bare words are strings:
`mlp:hidden=[512,256],activation=relu`.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import re
import tomllib
import typing
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal, cast

from vgg_jax.errors import OptionError, PluginError, UnknownPluginError, VggJaxError, did_you_mean
from vgg_jax.options import fits, spell

Kind = Literal["head", "augmentation"]
GROUPS: Mapping[Kind, str] = {"head": "vgg_jax.heads", "augmentation": "vgg_jax.augmentations"}

_BARE_WORD = re.compile(
    r"""
    ("[^"]*"|'[^']*')                           # what is quoted already stays as it is
    | (?<=[=\[,\s]) (?!(?:true|false|inf|nan)\b)
      ([A-Za-z_][\w.-]*)                        # a word
      (?![\w.-]) (?!\s*=)                       # that is no option's name
    """,
    re.VERBOSE,
)


@dataclasses.dataclass(frozen=True, order=True)
class Plugin:
    """One entry point of an installed package; nothing of it is imported yet.

    Attributes:
        kind: `head` or `augmentation`.
        name: The entry point's name.
        package: The distribution that declares it.
        version: That distribution's version.
        target: Where the object is, as `module:attribute`.
    """

    kind: Kind
    name: str
    package: str
    version: str
    target: str

    def load(self) -> Any:
        """Import the plugin and return its object.

        Raises:
            PluginError: If the import fails for whatever reason; the cause is chained.
        """
        try:
            return metadata.EntryPoint(self.name, self.target, GROUPS[self.kind]).load()
        except Exception as error:
            raise PluginError(
                f"The {self.kind} {self.name!r} of {self.package} {self.version} cannot be loaded"
                f" from {self.target}: {type(error).__name__}: {error}. Update or remove that"
                " package."
            ) from error


@dataclasses.dataclass(frozen=True)
class PluginChoice:
    """What a user asked for: a plugin and its options.

    Attributes:
        ref: `name` or `package/name`.
        options: Option values by name, as TOML gives them.
    """

    ref: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        """Return it in the form a user types: `REF[:OPTIONS]`."""
        options = ",".join(f"{name}={_toml_value(value)}" for name, value in self.options.items())
        return f"{self.ref}:{options}" if options else self.ref


def list_plugins(kind: Kind | None = None) -> list[Plugin]:
    """Return the installed plugins of one kind, or of all, sorted; imports none of them."""
    found = {
        Plugin(
            kind=group_kind,
            name=entry.name,
            package=entry.dist.name if entry.dist else "unknown",
            version=entry.dist.version if entry.dist else "unknown",
            target=entry.value,
        )
        for group_kind, group in GROUPS.items()
        if kind in (None, group_kind)
        for entry in metadata.entry_points(group=group)
    }
    return sorted(found)


def find_plugin(kind: Kind, ref: str) -> Plugin:
    """Return the one installed plugin that `ref`, a `name` or `package/name`, stands for.

    Raises:
        UnknownPluginError: If no package provides it.
        PluginError: If several do.
    """
    package, _, name = ref.rpartition("/")
    plugins = list_plugins(kind)
    matches = [p for p in plugins if p.name == name and package in ("", p.package)]
    if not matches:
        raise UnknownPluginError(kind, ref, [p.name for p in plugins])
    if len(matches) > 1:
        claims = " and ".join(f"{p.package} {p.version}" for p in matches)
        choices = " or ".join(f"{p.package}/{p.name}" for p in matches)
        raise PluginError(f"The {kind} {ref!r} is claimed by {claims}. Name one: {choices}.")
    return matches[0]


def parse_choice(text: str) -> PluginChoice:
    """Parse `REF[:OPTIONS]`.

    Raises:
        OptionError: If OPTIONS is not the inside of a TOML inline table.
    """
    ref, _, options = text.partition(":")
    quoted = _BARE_WORD.sub(lambda match: match[1] or f'"{match[2]}"', options)
    try:
        return PluginChoice(ref.strip(), tomllib.loads(f"options = {{{quoted}}}")["options"])
    except tomllib.TOMLDecodeError as error:
        raise OptionError(
            f"{ref}: the options {options!r} cannot be read ({error}). Write them as"
            " name=value,name=value."
        ) from error


def build(kind: Kind, choice: PluginChoice, *args: Any, **kwargs: Any) -> Any:
    """Load the chosen plugin, check its options against its annotations and call it.

    `args` and `kwargs` are what the contract passes beside the options.

    Raises:
        UnknownPluginError: If no package provides it.
        PluginError: If it cannot be loaded, or fails for another reason than its options.
        OptionError: If an option is unknown, of the wrong type or out of range.
    """
    plugin = find_plugin(kind, choice.ref)
    factory = plugin.load()
    check_options(plugin, factory, choice.options, reserved=kwargs)
    hints = _option_types(factory)
    options = {name: _as_python(value, hints[name]) for name, value in choice.options.items()}
    try:
        return factory(*args, **kwargs, **options)
    except VggJaxError:
        raise
    except Exception as error:
        raise PluginError(
            f"The {kind} {plugin.name!r} of {plugin.package} {plugin.version} failed:"
            f" {type(error).__name__}: {error}."
        ) from error


def check_options(
    plugin: Plugin, factory: Any, options: Mapping[str, Any], reserved: Mapping[str, Any]
) -> None:
    """Raise `OptionError` unless each option is a keyword of `factory` and of its type."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(_callable(factory)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in reserved
    }
    hints = _option_types(factory)
    for name, value in options.items():
        if name not in parameters:
            raise OptionError(
                f"{plugin.name}: no option named {name!r}.{did_you_mean(name, parameters)} "
                f"Options: {', '.join(parameters) or 'none'}."
            )
        annotation = hints[name]
        if not fits(value, annotation):
            raise OptionError(
                f"{plugin.name}: option {name!r} is {value!r}, but must be {spell(annotation)}."
            )


def _callable(factory: Any) -> Any:
    """Return what takes the options; a class's own signature may be hidden by its metaclass."""
    return factory.__init__ if inspect.isclass(factory) else factory


def _option_types(factory: Any) -> Mapping[str, Any]:
    """Return the annotated type of each parameter; Any where there is none."""
    hints = typing.get_type_hints(_callable(factory))
    return collections.defaultdict(lambda: Any, hints)


def _as_python(value: Any, annotation: Any) -> Any:
    """Turn lists into tuples, which a frozen dataclass can hold, and 1 into 1.0 for a float."""
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    return float(value) if annotation is float else value


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_toml_value, cast('list[Any]', value)))}]"
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'
