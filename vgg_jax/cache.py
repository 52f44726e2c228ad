"""Where vgg-jax keeps what it can make or fetch again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "VGG_JAX_CACHE"


def cache_folder() -> Path:
    """Return the user's cache folder, which may not exist yet; `VGG_JAX_CACHE` overrides it."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("vgg-jax")


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; what cannot be seen is none."""
    # Not Path.rglob, which fails where a folder is removed meanwhile.
    inside = (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
    total = 0
    for file in inside if path.is_dir() else (path,):
        with suppress(OSError):
            total += file.lstat().st_size
    return total
