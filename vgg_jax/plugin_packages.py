"""What installed packages say of their plugins, read from their metadata without importing them.

One package whose metadata are damaged is named as such; the others are read all the same.
"""

from __future__ import annotations

import dataclasses
import re
from importlib import metadata
from typing import cast

_OURS = "vgg_jax."  # begins the entry-point groups of plugins


@dataclasses.dataclass(frozen=True)
class PluginPackage:
    """An installed package that declares plugins, or tries to.

    Attributes:
        name: Of the distribution; where it cannot be read, of its metadata's folder.
        version: Of the distribution.
        summary: In one line.
        entries: Group, name and target of each entry point that is for us.
        fault: Why its metadata cannot be read; else empty.
    """

    name: str
    version: str = ""
    summary: str = ""
    entries: tuple[tuple[str, str, str], ...] = ()
    fault: str = ""


def plugin_packages() -> list[PluginPackage]:
    """Return the packages that declare plugins; of several of one name the first on the path."""
    packages: dict[str, PluginPackage] = {}
    for distribution in metadata.distributions():
        package = _read(distribution)
        if package is not None:
            packages.setdefault(canonical_package(package.name), package)
    return list(packages.values())


def canonical_package(name: str) -> str:
    """Return a package's name as indexes compare it: lower case, single hyphens."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _read(distribution: metadata.Distribution) -> PluginPackage | None:
    """Read one package; None if it declares nothing for us."""
    folder = getattr(getattr(distribution, "_path", None), "name", "a package without a name")
    if folder.startswith("~"):  # what an interrupted pip left; pip ignores it, too
        return None
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        if _OURS.encode() not in error.object:
            return None
        return PluginPackage(folder, fault="its entry_points.txt is not UTF-8")
    except OSError as error:
        return PluginPackage(folder, fault=f"its entry_points.txt: {error.strerror}")
    if _OURS not in text:
        return None
    try:
        entries = tuple(
            (entry.group, entry.name, entry.value)
            for entry in distribution.entry_points
            if entry.group.startswith(_OURS)
        )
    except (TypeError, ValueError, AttributeError) as error:
        return PluginPackage(folder, fault=f"its entry_points.txt: {error}")
    try:
        about = cast("dict[str, str]", distribution.metadata.json)
    except (metadata.PackageNotFoundError, TypeError, ValueError, OSError) as error:
        return PluginPackage(folder, fault=f"its METADATA: {error}")
    for key in ("name", "version"):
        if not about.get(key):
            name = about.get("name", folder)
            return PluginPackage(name, fault=f"its METADATA have no {key.title()}")
    return PluginPackage(about["name"], about["version"], about.get("summary", ""), entries)
