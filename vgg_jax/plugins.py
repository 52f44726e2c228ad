"""Heads and augmentations as plugins: found through entry points, listed without importing any.

The version of the contract that a plugin was written for is in the name of its entry-point group:
`vgg_jax.heads` is the first, `vgg_jax.heads.v2` would be the second; anything else after the kind
stands for a version that nobody here knows.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from vgg_jax.errors import PluginError, UnknownPluginError, VggJaxError, cause_of
from vgg_jax.local_plugins import LOCAL_MODULE, file_digest, load_file
from vgg_jax.plugin_choices import LOCAL_REF, PluginChoice
from vgg_jax.plugin_options import as_python, check_options, option_types
from vgg_jax.plugin_packages import canonical_package, plugin_packages

Kind = Literal["head", "augmentation"]
GROUPS: Mapping[Kind, str] = {"head": "vgg_jax.heads", "augmentation": "vgg_jax.augmentations"}
# What the contract passes by name; all other keywords are options.
KEYWORDS: Mapping[Kind, tuple[str, ...]] = {"head": ("rngs",), "augmentation": ()}
CONTRACT = "1"
OWN_PACKAGE = "vgg-jax"
ALLOWED_VARIABLE = "VGG_JAX_PLUGINS"

_GROUP = re.compile(r"(vgg_jax\.(?:heads|augmentations))(?:\.v(.+)|(\..*))?")


@dataclasses.dataclass(frozen=True, order=True)
class Plugin:
    """One entry point of an installed package, or a class in a file; nothing is imported yet.

    Attributes:
        kind: `head` or `augmentation`.
        name: The entry point's name; for a file the class's.
        package: The distribution that declares it; for a file its path.
        version: That distribution's version; for a file the start of its SHA-256.
        target: Where the object is, as `module:attribute`; for a file `path#attribute`.
        contract: Version of the contract it was written for, as its entry-point group has it.
        sha256: Of the file; empty for an installed one.
    """

    kind: Kind
    name: str
    package: str
    version: str
    target: str
    contract: str = CONTRACT
    sha256: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is in a file of the user's, not in an installed package."""
        return bool(self.sha256)

    @property
    def problem(self) -> str:
        """Why it cannot be used, as far as can be told without importing it; else empty."""
        if self.contract != CONTRACT:
            return (
                f"it is written for version {self.contract} of the plugin contract; this is vgg-jax"
                f" {metadata.version(OWN_PACKAGE)}, which has version {CONTRACT}"
            )
        allowed = allowed_packages()
        if allowed is None or self.is_local or self._canonical in (*allowed, OWN_PACKAGE):
            return ""
        return f"{ALLOWED_VARIABLE} does not name its package"

    @property
    def described(self) -> str:
        """Kind, name and origin, for messages."""
        return f"The {self.kind} {self.name!r} of {self.package} {self.version}"

    @property
    def _canonical(self) -> str:
        return canonical_package(self.package)

    def load(self) -> Any:
        """Import the plugin and return its object.

        Raises:
            PluginError: If the import fails for whatever reason; the cause is chained.
        """
        if self.problem:
            raise _unusable(self)
        try:
            if self.is_local:
                return load_file(Path(self.package), self.name, self.sha256)
            return metadata.EntryPoint(self.name, self.target, GROUPS[self.kind]).load()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.described} cannot be loaded from {self.target}: {cause_of(error)}."
                f" {self.way_out}"
            ) from error

    @property
    def way_out(self) -> str:
        """What a user can do where it fails."""
        return "Mend that file." if self.is_local else "Update or remove that package."


def list_plugins(kind: Kind | None = None) -> list[Plugin]:
    """Return the installed plugins of one kind, or of all, sorted; imports none of them.

    Those that cannot be used are among them: see `Plugin.problem`.
    """
    kinds: dict[str, Kind] = {group: group_kind for group_kind, group in GROUPS.items()}
    found: set[Plugin] = set()
    for package in plugin_packages():
        for group, name, target in package.entries:
            match = _GROUP.fullmatch(group)
            if match and kind in (None, kinds[match[1]]):
                version = match[2] or match[3] or CONTRACT
                found.add(
                    Plugin(kinds[match[1]], name, package.name, package.version, target, version)
                )
    return sorted(found)


def allowed_packages() -> tuple[str, ...] | None:
    """Return the packages that the environment allows beside the project's own; None for all."""
    value = os.environ.get(ALLOWED_VARIABLE)
    if value is None:
        return None
    return tuple(canonical_package(name) for name in value.split(",") if name.strip())


def find_plugin(kind: Kind, ref: str) -> Plugin:
    """Return the one plugin that `ref` stands for; imports nothing.

    Args:
        kind: `head` or `augmentation`.
        ref: A `name`, `package/name` or `file.py#Class`.

    Raises:
        UnknownPluginError: If no package provides it.
        PluginError: If several do, or if it cannot be used here, or if a file cannot be read.
    """
    local = LOCAL_REF.fullmatch(ref)
    if local:
        return _local_plugin(kind, local["file"], local["name"])
    package, _, name = ref.rpartition("/")
    plugins = list_plugins(kind)
    claims = [
        plugin
        for plugin in plugins
        if plugin.name == name
        and (not package or canonical_package(package) == canonical_package(plugin.package))
    ]
    if not claims:
        raise UnknownPluginError(kind, ref, [plugin.name for plugin in plugins])
    usable = [plugin for plugin in claims if not plugin.problem]
    if not usable:
        raise _unusable(claims[0])
    if len(usable) > 1:
        raise PluginError(_conflict(kind, ref, usable))
    return usable[0]


def find_of_any_kind(ref: str, kind: Kind | None = None) -> Plugin:
    """Return what `find_plugin` does, of whichever kind it is; a file's is taken for a head.

    Raises:
        UnknownPluginError: If no package provides it.
        PluginError: If several do or if it cannot be used, as for `find_plugin`.
    """
    kinds: list[Kind] = [kind] if kind else ["head", "augmentation"]
    if LOCAL_REF.fullmatch(ref):
        return find_plugin(kinds[0], ref)
    name = ref.rpartition("/")[2]
    having: list[Kind] = [
        k for k in kinds if any(plugin.name == name for plugin in list_plugins(k))
    ]
    if len(having) > 1:
        raise PluginError(
            f"{ref!r} is a head and an augmentation. Say which: --kind head or --kind augmentation."
        )
    if not having and kind is None:
        raise UnknownPluginError("plugin", ref, [plugin.name for plugin in list_plugins()])
    return find_plugin((having or kinds)[0], ref)


def plugin_of(thing: object) -> Plugin | None:
    """Return the installed plugin that is the class of an object, or None."""
    target = f"{type(thing).__module__}:{type(thing).__qualname__}"
    return next((plugin for plugin in list_plugins() if plugin.target == target), None)


def origin_of(thing: object) -> str:
    """Say which plugin an object was built by, for messages: by its class, or where that is."""
    kind, plugin = type(thing), plugin_of(thing)
    if plugin:
        return (
            f"{plugin.kind} {plugin.name!r} of {plugin.package} {plugin.version} ({plugin.target})"
        )
    if kind.__module__.startswith(LOCAL_MODULE):
        return f"{kind.__qualname__} in {sys.modules[kind.__module__].__file__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def build(kind: Kind, choice: PluginChoice, *args: Any, **kwargs: Any) -> Any:
    """Load the chosen plugin, check its options against its annotations and call it.

    `args` and `kwargs` are what the contract passes beside the options.

    Raises:
        UnknownPluginError: If no package provides it.
        PluginError: If it cannot be loaded, or fails for another reason than its options.
        OptionError: If an option is unknown, missing, of the wrong type or out of range.
    """
    plugin = find_plugin(kind, choice.ref)
    factory = plugin.load()
    options = choice.options
    if not callable(factory):
        raise PluginError(
            f"{plugin.described} is a {type(factory).__name__} at {plugin.target}, but must be a"
            f" class or a function. {plugin.way_out}"
        )
    try:
        check_options(plugin.name, factory, options, reserved=kwargs)
        hints = option_types(factory)
        given = {name: as_python(value, hints[name]) for name, value in options.items()}
        return factory(*args, **kwargs, **given)
    except VggJaxError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{plugin.described} failed: {cause_of(error)}. {plugin.way_out}"
        ) from error


def _local_plugin(kind: Kind, file: str, name: str) -> Plugin:
    path = Path(file).expanduser().absolute()
    if not name.isidentifier():
        raise PluginError(
            f"{file}#{name} names no class: write the file, a # and the name of the {kind}'s class"
            f" or function, as in {file}#MyClass."
        )
    digest = file_digest(path)
    return Plugin(kind, name, str(path), digest[:12], f"{path}#{name}", sha256=digest)


def _unusable(plugin: Plugin) -> PluginError:
    if plugin.contract != CONTRACT:
        return PluginError(
            f"{plugin.described} cannot be used: {plugin.problem}. Update vgg-jax or"
            f" {plugin.package}, or use another {plugin.kind}."
        )
    return PluginError(
        f"{plugin.described} cannot be used: {plugin.problem}. Add {plugin.package} to that"
        " variable, or unset it to allow every installed package."
    )


def _conflict(kind: Kind, ref: str, claims: Sequence[Plugin]) -> str:
    if len({canonical_package(plugin.package) for plugin in claims}) == 1:
        targets = " and ".join(plugin.target for plugin in claims)
        return (
            f"The {kind} {ref!r} of {claims[0].package} {claims[0].version} is declared twice, at"
            f" {targets}. Update or remove that package."
        )
    packages = " and ".join(f"{plugin.package} {plugin.version}" for plugin in claims)
    choices = " or ".join(f"{plugin.package}/{plugin.name}" for plugin in claims)
    return f"The {kind} {ref!r} is claimed by {packages}. Name one: {choices}."
