"""Trainings in a control group that leaves them little memory; run by `make test-slow`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

VGG_JAX = Path(sys.executable).with_name("vgg-jax")
LIMIT = 3_500_000_000  # bytes, for all that the group holds
IN_GROUP = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
# Where groups of memory are, by the line that names ours, and the files of limit and high-water.
HIERARCHIES = (
    (r"^\d+:memory:(/.*)", "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (r"^0::(/.*)", "", "memory.max", "memory.peak"),
)


@pytest.fixture
def group():
    """Make a control group below ours, whose memory is limited; returns its folder."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text() if own.exists() else ""
    for line, where, limit_file, peak_file in HIERARCHIES:
        found = re.search(line, lines, re.MULTILINE)
        folder = Path(f"/sys/fs/cgroup/{where}{found[1] if found else ''}/vgg-jax-{os.getpid()}")
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit_file).write_text(str(LIMIT))
        except OSError:
            folder.rmdir()
            continue
        yield folder, folder / peak_file
        folder.rmdir()
        return
    pytest.skip("this user can make no control group that limits memory")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_largest_safe_batch_is_safe(group, tmp_path):
    folder, peak = group

    def run(*arguments: object) -> str:
        command = ["sh", "-c", IN_GROUP, "sh", folder, VGG_JAX, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("--data", "demo", "--weights", "random:0", "--image-size", 224, "--epochs", 2)
    plan = json.loads(run("plan", *options, "--json"))
    assert plan["available_bytes"] < LIMIT
    largest = plan["largest_batch_size"]
    assert 32 < largest < plan["examples"]["train"]  # so the limit counts
    run("train", *options, "--batch-size", largest, "--run", tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert peak.exists()
    print(f"batches of {largest}: at most {int(peak.read_text()) / 1e9:.2f} GB of the group's")
