"""Keeps compiled programs, so that what one test compiled no other test compiles again.

Compiling takes most of the time of the tests. JAX can keep what it compiled in files; a program
that is read from there is the same machine code, so that its results are the same to the bit.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax

_MOST_BYTES = 1 << 30


def _put(self: Any, key: str, value: bytes) -> None:
    """Write as JAX does, but whole: tests must not read a part, nor may a part remain."""
    path = Path(str(self.path)) / f"{key}-cache"
    if not path.exists():
        part = path.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}.part")
        part.write_bytes(value)
        part.replace(path)


def keep(folder: Path) -> None:
    """Keep what this process compiles in a folder; let its children read it, but not write.

    Children are killed by some tests, and write as JAX does.
    """
    try:
        from jax._src.lru_cache import LRUCache
    except ImportError:  # it is JAX's own and may move; then nothing is kept
        return
    LRUCache.put = _put
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1e9"


def forget_if_large(folder: Path) -> None:
    """Empty a folder that holds the programs of many versions."""
    if sum(file.stat().st_size for file in folder.iterdir()) > _MOST_BYTES:
        shutil.rmtree(folder)
        folder.mkdir()
