"""Where vgg-jax keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "VGG_JAX_CACHE"


def cache_folder() -> Path:
    """Return the user's cache folder, which may not exist yet; `VGG_JAX_CACHE` overrides it."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("vgg-jax")
