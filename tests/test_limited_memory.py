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
# Where groups of memory are, by the line that names ours, and the files of limits.
HIERARCHIES = (
    (r"^\d+:memory:(/.*)", "memory", ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")),
    (r"^0::(/.*)", "", ("memory.max",)),
)


@pytest.fixture
def group():
    """Make a control group below ours, whose memory is limited; returns its folder."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text() if own.exists() else ""
    for line, where, limit_files in HIERARCHIES:
        found = re.search(line, lines, re.MULTILINE)
        folder = Path(f"/sys/fs/cgroup/{where}{found[1] if found else ''}/vgg-jax-{os.getpid()}")
        if not (folder.parent / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / limit_files[0]).exists():
                for limit_file in limit_files:
                    if (folder / limit_file).exists():  # that of swap is not everywhere
                        (folder / limit_file).write_text(str(LIMIT))
                yield folder
                return
        finally:
            folder.rmdir()
    pytest.skip(
        "no control group can be made that limits memory: where groups are of version 2,"
        " ours must be empty and pass the controller on"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_largest_safe_batch_is_safe(group, tmp_path):
    def run(*arguments: object) -> str:
        command = ["sh", "-c", IN_GROUP, "sh", group, VGG_JAX, *map(str, arguments)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("--data", "demo", "--weights", "random:0", "--image-size", 224, "--epochs", 2)
    plan = json.loads(run("plan", *options, "--json"))
    assert plan["available_bytes"] < LIMIT
    largest = plan["largest_batch_size"]
    assert 32 < largest < plan["examples"]["train"]  # so the limit counts
    run("train", *options, "--batch-size", largest, "--run", tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
