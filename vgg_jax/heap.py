"""The memory that this process has freed, kept for what it asks for next."""

from __future__ import annotations

import os

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Let the process hold on to memory that it frees, instead of handing it back to the system.

    Convolutions on a CPU take hundreds of megabytes of working memory in every batch; got anew each
    time, the system must find and clear every page of it. To be called by commands before JAX is
    imported, since it holds for the whole process. Nothing is changed where the C library is not
    glibc, or where the environment sets up its `malloc`.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    import ctypes  # of milliseconds that `--help` does not have

    # Other C libraries have no `mallopt`; on Windows not even the process itself can be opened.
    if os.name != "posix" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return
    library.mallopt(_ARENA_MAX, 1)  # others cannot hold large pieces
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
