"""How much memory is free, as the system, a container or a device tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vgg_jax.training import memory
from vgg_jax.training.memory import available_bytes
from vgg_jax.training.steps import data_mesh

MEMINFO = "MemTotal:  24000000 kB\nMemFree:   1000 kB\nMemAvailable:   8000 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Pretend that the system says something else."""

    def says(meminfo: str | None = MEMINFO, **cgroup: str) -> None:
        for name, text in {"meminfo": meminfo, **cgroup}.items():
            if text is not None:
                (tmp_path / name.replace("_", ".")).write_text(text)
        monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(memory, "_CGROUP", tmp_path)

    return says


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_192_000),
        ({"memory_max": "max\n", "memory_current": "5000\n"}, 8_192_000),
        ({"memory_max": "9000\n", "memory_current": "5000\n"}, 4000),
        ({"memory_max": "90000000\n", "memory_current": "5000\n"}, 8_192_000),
        ({"memory_max": "5000\n", "memory_current": "6000\n"}, 0),
        ({"meminfo": None}, 0),
    ],
)
def test_the_host_has_what_the_system_and_the_container_allow(system, files, expected):
    system(**files)
    assert available_bytes() == expected


def mesh(*stats: dict[str, int] | None) -> Any:
    """Return as much of a mesh as is asked, of devices with these statistics."""
    devices = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    return SimpleNamespace(devices=np.array(devices))


def test_devices_have_what_the_fullest_has_left(system):
    system()
    first, second = ({"bytes_limit": 1000, "bytes_in_use": used} for used in (300, 100))
    assert available_bytes(mesh(first, second)) == 700


def test_devices_without_a_memory_share_the_hosts(system):
    system()
    assert available_bytes(mesh(None, None)) == 4_096_000


def test_this_machine_has_some():
    assert available_bytes(data_mesh()) > 0
