"""Memory that a process frees is kept, and given out again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PAGES = """
import ctypes, resource, sys
import numpy as np
from vgg_jax.heap import keep_freed_memory

PR_SET_THP_DISABLE = 41  # or pages are of any size
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 24)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""

# Ends with 42 if memory is held, and JAX is yet to be imported.
COMMAND = """
import importlib, sys
from vgg_jax.cli.app import app

command = importlib.import_module(f"vgg_jax.cli.{sys.argv[1]}")
command.keep_freed_memory = lambda: sys.exit("JAX was imported" if "jax" in sys.modules else 42)
app(sys.argv[1:])
"""


def pages_of_128_mb(way: str, **environment: str) -> int:
    """Return how many pages another process got for each of five equal arrays after a first."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PAGES, way],
        env=others | environment,
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


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["sweep"],
        ["plan"],
        ["evaluate", "run"],
        ["predict", "--weights", "demo", "a.png"],
    ],
    ids=lambda words: words[0],
)
def test_commands_hold_memory_before_they_import_jax(words):
    command = [sys.executable, "-c", COMMAND, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 42, done.stderr
