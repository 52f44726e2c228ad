"""Disks that a test mounts for itself: small ones, and ones that may only be read."""

from __future__ import annotations

import shutil
import subprocess

import pytest

MOUNTS = (
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    if shutil.which("unshare")
    else False
)
needs_mounts = pytest.mark.skipif(not MOUNTS, reason="this machine lets no test mount a disk")


def in_shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script whose mounts nobody else sees; its arguments are $1, $2 and so on."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
