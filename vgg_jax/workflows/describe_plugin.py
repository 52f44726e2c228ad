"""What there is to know of one plugin, for `vgg-jax plugins show`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from vgg_jax import plugins
from vgg_jax.augment.chain import as_choice, build_augmentations
from vgg_jax.contract import Augmentation
from vgg_jax.errors import OptionError
from vgg_jax.plugin_choices import PluginChoice
from vgg_jax.plugin_options import Option, describe_options, describe_purpose
from vgg_jax.plugins import KEYWORDS, Kind, Plugin


@dataclasses.dataclass(frozen=True)
class PluginDescription:
    """What a plugin says of itself.

    Attributes:
        plugin: Where it is from.
        kind: `head`, or `host`, `geometric`, `pixel`, `batch` augmentation, or `preset`.
        purpose: Its docstring without the sections on options and errors; empty if it has none.
        options: Its options, in its own order.
        stands_for: Of a preset, the augmentations as a user would write them.
    """

    plugin: Plugin
    kind: str
    purpose: str
    options: tuple[Option, ...]
    stands_for: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        found = dataclasses.asdict(self)
        return found.pop("plugin") | {"what": found.pop("kind")} | found


def describe_plugin(ref: str, kind: Kind | None = None) -> PluginDescription:
    """Load a plugin and read what it says of itself.

    Args:
        ref: `name`, `package/name` or `file.py#Class`.
        kind: Needed only where a head and an augmentation have the same name.

    Raises:
        UnknownPluginError: If no package provides it.
        PluginError: If it cannot be loaded or is no plugin.
    """
    plugin = plugins.find_of_any_kind(ref, kind)
    factory = plugin.load()
    if plugin.is_local and inspect.isclass(factory) and issubclass(factory, Augmentation):
        plugin = dataclasses.replace(plugin, kind="augmentation")
    purpose = describe_purpose(factory)
    options = describe_options(factory, KEYWORDS[plugin.kind])
    if plugin.kind == "head":
        return PluginDescription(plugin, "head", purpose, options)
    what, stands_for = _what(ref, factory)
    return PluginDescription(plugin, what, purpose, options, stands_for)


def _what(ref: str, factory: Any) -> tuple[str, tuple[str, ...]]:
    if inspect.isclass(factory):
        kinds = [base.__name__ for base in factory.__mro__ if base.__module__ == _CONTRACT]
        name = kinds[0].removesuffix("Augmentation").lower() if kinds else "unknown"
        return f"{name} augmentation", ()
    try:
        items = build_augmentations(PluginChoice(ref))
    except OptionError:  # it needs options, so that nothing can be said of it without them
        return "preset", ()
    return "preset", tuple(_written(item) for item in items)


def _written(augmentation: Augmentation) -> str:
    choice = as_choice(augmentation)
    return str(dataclasses.replace(choice, ref=choice.ref.rpartition("/")[2]))


_CONTRACT = Augmentation.__module__
