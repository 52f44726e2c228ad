"""Whatever happens to a training in whatever order, it ends as an undisturbed one does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "interleavings.py"


def interleave(count: int, seed: int, seconds: float) -> str:
    """Run that many interleavings in a process of their own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM, "--count", str(count), "--seed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(rf"{count} interleavings, \d+ lives", done.stdout)
    return done.stdout


def test_interrupted_and_damaged_trainings_end_with_the_same_bytes():
    printed = interleave(8, seed=1005, seconds=240)
    for end in ("death", "full", "error", "signal", "complete"):
        assert f"ended by {end}:" in printed


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [10_000, 20_000, 30_000, 40_000])
def test_two_thousand_interleavings(seed):
    interleave(500, seed, seconds=3500)
