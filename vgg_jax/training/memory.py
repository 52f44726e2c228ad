"""How much memory there is, and what to say when it does not suffice."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import jax

from vgg_jax.errors import TrainingError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory")


def available_bytes(mesh: jax.sharding.Mesh | None = None) -> int:
    """Return how many bytes can still be had: of each device of a mesh, or of the host.

    A device without a memory of its own, such as the CPU, has the host's. Where the system does not
    tell, it is none.
    """
    if mesh is not None:
        stats = [device.memory_stats() for device in mesh.devices.flat]
        free = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if s and "bytes_limit" in s]
        return min(free) if len(free) == len(stats) else available_bytes() // len(stats)
    found = re.search(r"MemAvailable: *(\d+) kB", _read(_MEMINFO))
    available = int(found[1]) * 1024 if found else 0
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():  # "max" is none
        # Of what is used, files that were read give way.
        files = re.search(r"^inactive_file (\d+)", _read(_CGROUP / "memory.stat"), re.MULTILINE)
        kept = int(used) - (int(files[1]) if files else 0)
        available = min(available, max(int(limit) - kept, 0))
    return available


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:  # not on this system
        return ""


@contextmanager
def naming_a_smaller_batch(batch_size: int, advice: Callable[[int], str]) -> Generator[None]:
    """Turn running out of memory, the device's or the host's, into an error that says what helps.

    Args:
        batch_size: In use.
        advice: Says how to go on with batches of another size.

    Raises:
        TrainingError: If the memory does not suffice.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _EXHAUSTED):
            raise
        what = f" ({text.splitlines()[0][:160]})" if text else ""
        smaller = (
            f"A batch of {batch_size // 2} needs about half: {advice(batch_size // 2)}"
            if batch_size > 1
            else "Batches cannot be smaller than one; train less of the network (--train-from), or"
            " use a smaller --image-size"
        )
        raise TrainingError(
            f"The memory of {jax.devices()[0].device_kind} does not suffice for batches of"
            f" {batch_size}{what}.\n{smaller}."
        ) from error
