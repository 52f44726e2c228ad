"""Heads and augmentations in a user's own file, without a package around them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from vgg_jax.errors import PluginError

LOCAL_MODULE = "vgg_jax_local_"  # begins the names of such modules


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        PluginError: If it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PluginError(f"The plugin file {path} cannot be read: {error.strerror}.") from error


def load_file(path: Path, name: str, sha256: str) -> Any:
    """Run a file's code and return what it calls `name`; a file runs once in a process.

    Raises:
        PluginError: If its bytes are no longer those of `sha256`, or it has no such name.
        Exception: Whatever the code raises.
    """
    module_name = f"{LOCAL_MODULE}{sha256}"
    module = sys.modules.get(module_name)
    if module is None:
        source = path.read_bytes()
        if hashlib.sha256(source).hexdigest() != sha256:
            raise PluginError(f"{path} has changed since it was found")
        code = compile(source, path, "exec", dont_inherit=True)
        spec = importlib.util.spec_from_loader(module_name, loader=None, origin=str(path))
        if spec is None:
            raise PluginError(f"{path} cannot be a module")
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(path)
        sys.modules[module_name] = module  # dataclasses look their module up
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[module_name]
            raise
    if not hasattr(module, name):
        raise PluginError(f"the file has nothing called {name!r}")
    return getattr(module, name)
