"""A plugin package to begin with, whose own tests pass."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.resources
import keyword
import re
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any, Literal

from vgg_jax import api
from vgg_jax.errors import ConfigError
from vgg_jax.plugins import GROUPS, OWN_PACKAGE, Kind, list_plugins

License = Literal["apache-2.0", "mit", "bsd-3-clause"]
LICENSE_IDS: dict[License, str] = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
}
_PREFIX = "vgg-jax-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUMMARIES: dict[Kind, str] = {
    "augmentation": "covers a random square of each training picture, sometimes.",
    "head": "global average pooling and a hidden layer.",
}
_OPTIONS: dict[Kind, tuple[tuple[str, str, str, str], ...]] = {
    "augmentation": (
        ("size", "0.25", "0 to 1", "side of the square, as a share of the picture's"),
        ("value", "0.5", "0 to 1", "grey level of the cover"),
        ("probability", "0.5", "0 to 1", "how often"),
    ),
    "head": (
        ("units", "128", "1 to 65536", "of the hidden layer"),
        ("dropout", "0.2", "0 to below 1", "share of them dropped in training"),
    ),
}


@dataclasses.dataclass(frozen=True)
class NewPlugin:
    """A package that was written.

    Attributes:
        folder: Where it is.
        package: Its name, as `pip install` takes it.
        module: Its module.
        name: The plugin's name, as --head or --augment takes it.
        files: What was written, relative to the folder.
    """

    folder: Path
    package: str
    module: str
    name: str
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return dataclasses.asdict(self) | {"folder": str(self.folder), "files": list(self.files)}


def new_plugin(
    kind: Kind,
    name: str,
    *,
    out: Path = Path(),
    license_name: License = "apache-2.0",
    author: str = "its authors",
) -> NewPlugin:
    """Write a package with one plugin, a test, a README and a licence.

    Args:
        kind: `head` or `augmentation`.
        name: Of the plugin, such as `my-cutout`; the package is called `vgg-jax-my-cutout`.
        out: Folder in which the package's own folder is made.
        license_name: A key of `LICENSE_IDS`.
        author: Whom the licence names.

    Raises:
        ConfigError: If the name cannot be used or is taken, or the folder exists.
    """
    plain = name.removeprefix(_PREFIX)
    if not _NAME.fullmatch(plain):
        raise ConfigError(
            f"The name {name!r} cannot be used: write small letters, digits and single hyphens, a"
            " letter first, as in my-cutout."
        )
    class_name = _class_name(plain)
    if keyword.iskeyword(class_name) or class_name in api.__all__:
        raise ConfigError(
            f"The name {name!r} cannot be used: its class would be called {class_name}, which"
            f" Python or vgg_jax.api has already. Choose another one, such as my-{plain}."
        )
    taken = [plugin for plugin in list_plugins(kind) if plugin.name == plain]
    if taken:
        raise ConfigError(
            f"{taken[0].package} has {'an' if kind[0] == 'a' else 'a'} {kind} {plain!r} already;"
            f" choose another name, such as my-{plain}."
        )
    package = f"{_PREFIX}{plain}"
    module = package.replace("-", "_")
    folder = out / package
    if folder.exists():
        raise ConfigError(f"{folder} exists. Move it away, or choose another name or --out.")
    files = _files(kind, plain, package, module, license_name, author)
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.") from error
    return NewPlugin(folder, package, module, plain, tuple(files))


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _files(
    kind: Kind, name: str, package: str, module: str, license_name: License, author: str
) -> dict[str, str]:
    table = [("option", "default", "range", "meaning"), ("---",) * 4, *_OPTIONS[kind]]
    rows = [
        f"| {' | '.join((f'`{row[0]}`' if i > 1 else row[0], *row[1:]))} |"
        for i, row in enumerate(table)
    ]
    values = {
        "kind": kind,
        "name": name,
        "package": package,
        "module": module,
        "class_name": _class_name(name),
        "group": GROUPS[kind],
        "flag": "--head" if kind == "head" else "--augment",
        "license_id": LICENSE_IDS[license_name],
        "version": ".".join(metadata.version(OWN_PACKAGE).split(".")[:2]),
        "more_dependencies": ', "flax>=0.12.8"' if kind == "head" else "",
        "summary": _SUMMARIES[kind],
        "options_table": "\n".join(rows),
        "author": author,
        "year": str(datetime.datetime.now(tz=datetime.UTC).year),
    }
    templates = {
        "pyproject.toml": "pyproject.toml.tmpl",
        "README.md": "README.md.tmpl",
        "LICENSE": f"licenses/{license_name}.txt",
        ".gitignore": "gitignore.tmpl",
        f"src/{module}/__init__.py": f"{kind}.py.tmpl",
        f"tests/test_{module}.py": f"{kind}_test.py.tmpl",
    }
    found = importlib.resources.files("vgg_jax") / "templates"
    return {
        path: Template((found / template).read_text(encoding="utf-8")).safe_substitute(values)
        for path, template in templates.items()
    }
