"""How much memory is free, as the system, a container or a device tells."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import psutil
import pytest

from vgg_jax.errors import MemoryExhausted, PluginError
from vgg_jax.training import memory
from vgg_jax.training.memory import available_bytes, naming_a_smaller_batch
from vgg_jax.training.steps import data_mesh

FREE = 8_192_000  # bytes
JOB = "0::/slurm/job 7/step\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Pretend that the system says something else."""

    def says(available: int | Exception = FREE, own: str | None = None, **limits: str) -> None:
        """Each limit is `<limit> <used> <files that give way>` of the group of that path."""

        def virtual_memory() -> SimpleNamespace:
            if isinstance(available, Exception):
                raise available
            return SimpleNamespace(available=available)

        monkeypatch.setattr(psutil, "virtual_memory", virtual_memory)
        monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
        monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
        if own is not None:
            (tmp_path / "own").write_bytes(own.encode("latin-1"))
        for group, text in limits.items():
            folder = tmp_path / group
            folder.mkdir(parents=True, exist_ok=True)
            v1 = group.startswith("memory")
            limit, used, files = text.split()
            (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(f"{limit}\n")
            (folder / ("memory.usage_in_bytes" if v1 else "memory.current")).write_text(f"{used}\n")
            stat = f"inactive_file {files}\n"
            (folder / "memory.stat").write_text(f"inactive_file 7\ntotal_{stat}" if v1 else stat)

    return says


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        (None, {}, FREE),
        ("0::/\n", {"": "max 5000 0"}, FREE),
        ("0::/\n", {"": "9000 5000 0"}, 4000),
        ("0::/\n", {"": "9000 5000 2000"}, 6000),
        ("0::/\n", {"": "90000000 5000 0"}, FREE),
        ("0::/\n", {"": "5000 6000 0"}, 0),
        (None, {"": "9000 5000 0"}, 4000),
        (JOB, {"slurm/job 7": "9000 5000 0", "slurm/job 7/step": "max 5000 0"}, 4000),
        (JOB, {"slurm": "9000 8000 0", "slurm/job 7/step": "7000 5000 0"}, 1000),
        (JOB, {"slurm": "9000 5000 1000", "slurm/job 7/step": "7000 5000 0"}, 2000),
        (JOB, {"slurm/job 8": "9000 5000 0"}, FREE),  # another's
        (JOB, {"": "9000 5000 0"}, 4000),  # the path is the host's, the root a container's
        ("4:memory:/job\n0::/\n", {"memory/job": "9000 5000 0"}, 4000),
        ("4:memory:/job\n", {"memory": "6000 5000 0", "memory/job": "9000 5000 0"}, 1000),
        ("4:memory:/job\n", {"memory/job": "9000 5000 2000"}, 6000),
        ("4:memory:/job\n", {"memory/job": "9223372036854771712 5000 0"}, FREE),  # v1's "max"
        ("4:cpu:/job\n", {"memory/job": "9000 5000 0"}, FREE),
        ("0::/../\xff (deleted)\n", {"": "odd 5000 0"}, FREE),
        ("nonsense", {"": "-1 5000 none"}, FREE),
    ],
)
def test_the_host_has_what_the_system_and_all_groups_allow(system, own, limits, expected):
    system(own=own, **limits)
    assert available_bytes() == expected


@pytest.mark.parametrize("error", [FileNotFoundError("/proc/meminfo"), KeyError("MemTotal:")])
def test_a_system_that_does_not_tell_has_none(system, error):
    system(error)
    assert available_bytes() == 0


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


def test_this_machine_has_some_whatever_it_is(monkeypatch):
    """Where it has no files that tell, as macOS, too."""
    assert 0 < available_bytes(data_mesh()) <= psutil.virtual_memory().total
    for name in ("_OWN_CGROUPS", "_CGROUPS"):
        monkeypatch.setattr(memory, name, Path("/nowhere"))
    assert available_bytes(data_mesh()) > 0


def of_a_head(cause: Exception) -> PluginError:
    error = PluginError("The head failed.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 8 bytes"),
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory"),
        ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
        of_a_head(ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("size", "advice"), [(8, r"of 4 needs about half: take 4\.$"), (1, "smaller --image-size")]
)
def test_what_the_memory_does_not_suffice_for_is_told(error, size, advice):
    said = rf"does not suffice for batches of {size}.*\.\n.*{advice}"
    with (
        pytest.raises(MemoryExhausted, match=said),
        naming_a_smaller_batch(size, lambda smaller: f"take {smaller}"),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: 8 bytes"),
        ValueError("8 is too large"),
        RuntimeError("RESOURCE_EXHAUSTED, says a plugin"),
        of_a_head(ValueError("8 is too large")),
        PluginError("The head said: Out of memory"),
    ],
    ids=repr,
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, naming_a_smaller_batch(8, str):
        raise error
    assert caught.value is error
