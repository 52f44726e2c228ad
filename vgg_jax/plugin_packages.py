"""What installed packages say of their plugins, read from their metadata without importing them.

One package whose metadata are damaged is named as such; the others are read all the same.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import cast

from vgg_jax.errors import InstallationError

_OURS = "vgg_jax."  # begins the entry-point groups of plugins
_Stamp = tuple[int, ...]
_read_before: dict[object, tuple[tuple[_Stamp, ...], PluginPackage | None]] = {}  # by folder
_FILES = ("entry_points.txt", "METADATA", "PKG-INFO")  # the last in `.egg-info`
_UNREADABLE = (TypeError, ValueError, AttributeError, OSError)  # of entry points


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
        package = _read_once(distribution)
        if package is not None:
            packages.setdefault(canonical_package(package.name), package)
    return list(packages.values())


def canonical_package(name: str) -> str:
    """Return a package's name as indexes compare it: lower case, single hyphens."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


@contextmanager
def damaged_packages_named() -> Generator[None]:
    """Say whose damaged entry points ended what is done within.

    JAX looks for plugins of its own in every installed package, and gives up at a damaged one.

    Raises:
        InstallationError: If an exception came from reading such a package.
    """
    try:
        yield
    except _UNREADABLE as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if all(frame.f_globals.get("__name__") != metadata.__name__ for frame in frames):
            raise
        for distribution in metadata.distributions():
            fault = _fault(distribution)
            if fault:
                raise InstallationError(
                    f"{getattr(distribution, '_path', 'An installed package')} is damaged: {fault}."
                    " JAX looks through all installed packages and cannot start.\nInstall that"
                    " package again, or delete the folder."
                ) from error
        raise


def _fault(distribution: metadata.Distribution) -> str:
    """Say why a package's entry points cannot be read; empty if they can."""
    try:
        tuple(distribution.entry_points)
    except UnicodeDecodeError:
        return "its entry_points.txt is not UTF-8"
    except OSError as error:
        return f"its entry_points.txt: {error.strerror}"
    except _UNREADABLE:
        return "its entry_points.txt has a line that is no `name = value`"
    return ""


def _read_once(distribution: metadata.Distribution) -> PluginPackage | None:
    """Do what `_read` does, but a second time only if its files have changed, or it failed.

    To read the hundred packages that come with vgg-jax takes 8 ms, and plugins are looked up often.
    """
    folder = getattr(distribution, "_path", None)
    stamps = tuple(_stamp(file) for file in _files(str(folder)))
    before, package = _read_before.get(folder, ((), None))
    if stamps == before and any(stamps) and not (package and package.fault):
        return package
    package = _read(distribution)
    _read_before[folder] = stamps, package
    return package


@functools.cache  # to join the paths takes twice as long as to look at the files
def _files(folder: str) -> tuple[Path, ...]:
    return tuple(Path(folder, name) for name in _FILES)


def _stamp(file: Path) -> _Stamp:
    """Return what changes with a file, its permissions included; empty if it cannot be found."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(distribution: metadata.Distribution) -> PluginPackage | None:
    """Read one package; None if it declares nothing for us."""
    folder = getattr(getattr(distribution, "_path", None), "name", "a package without a name")
    if folder.startswith("~"):  # what an interrupted pip left; pip ignores it, too
        return None
    fault = _fault(distribution)
    if fault:
        return PluginPackage(folder, fault=fault)
    entries = tuple(
        (entry.group, entry.name, entry.value)
        for entry in distribution.entry_points
        if entry.group.startswith(_OURS)
    )
    if not entries:
        return None
    try:
        about = cast("dict[str, str]", distribution.metadata.json)
    except (metadata.PackageNotFoundError, TypeError, ValueError, OSError) as error:
        return PluginPackage(folder, fault=f"its METADATA: {error}")
    for key in ("name", "version"):
        if not about.get(key):
            name = about.get("name", folder)
            return PluginPackage(name, fault=f"its METADATA have no {key.title()}")
    return PluginPackage(about["name"], about["version"], about.get("summary", ""), entries)
