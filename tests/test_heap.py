"""Memory that a process frees is kept, and given out again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
import numpy as np
from vgg_jax.heap import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 24)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


def pages_of_128_mb(way: str, **environment: str) -> int:
    """Return how many pages another process got for each of five equal arrays after a first."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    huge = {"NUMPY_MADVISE_HUGEPAGE": "0"}  # or pages are of any size
    done = subprocess.run(
        [sys.executable, "-c", PAGES, way],
        env=others | huge | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_given_out_again():
    assert pages_of_128_mb("as it comes") > 10_000
    assert pages_of_128_mb("kept") < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_the_environment_says_of_malloc_holds():
    assert pages_of_128_mb("kept", MALLOC_TRIM_THRESHOLD_="131072") > 10_000
