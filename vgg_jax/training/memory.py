"""How much memory there is, and what to say when it does not suffice."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import jax
import psutil

from vgg_jax.errors import MemoryExhausted, PluginError

_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
# cgroup v2 and v1: the line that names the process's group, where groups are, the files of a limit
# and of what is used, and the part of that, files that were read, which gives way.
_HIERARCHIES = (
    (r"^0::(/.*)", "", "memory.max", "memory.current", "inactive_file"),
    (
        r"^\d+:memory:(/.*)",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
# JAX raises a ValueError where an operation by itself finds no memory, not a program's.
_OF_MEMORY = (MemoryError, ValueError, jax.errors.JaxRuntimeError)
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory")


def available_bytes(mesh: jax.sharding.Mesh | None = None) -> int:
    """Return how many bytes can still be had: of each device of a mesh, or of the host.

    A device without a memory of its own, such as the CPU, has the host's: what the system has left,
    or less where a container or a batch system limits the process. Where the system does not tell,
    it is none.
    """
    if mesh is not None:
        stats = [device.memory_stats() for device in mesh.devices.flat]
        free = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if s and "bytes_limit" in s]
        return min(free) if len(free) == len(stats) else available_bytes() // len(stats)
    try:
        available = psutil.virtual_memory().available
    except (OSError, LookupError, ValueError):  # Linux without /proc, or with an odd one
        return 0
    return min([available, *_left_by_cgroups()])


def _left_by_cgroups() -> Generator[int]:
    """Yield what each control group of the process, and those around it, leave it."""
    own = _read(_OWN_CGROUPS)
    for line, hierarchy, limit_file, use_file, given_way in _HIERARCHIES:
        found = re.search(line, own, re.MULTILINE)
        names = found[1].split("/") if found else []
        # In a container the path may be the host's, and the root here the container's.
        for folder in itertools.accumulate(names, Path.joinpath, initial=_CGROUPS / hierarchy):
            limit, used = (_read(folder / name).strip() for name in (limit_file, use_file))
            if limit.isdecimal() and used.isdecimal():  # "max" is none
                files = re.search(
                    rf"^{given_way} (\d+)", _read(folder / "memory.stat"), re.MULTILINE
                )
                yield max(int(limit) - int(used) + (int(files[1]) if files else 0), 0)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not on this system
        return ""


def _tells_of_memory(error: BaseException | None) -> bool:
    """Tell whether the memory did not suffice, which is what an error of these types may say."""
    said = any(sign in str(error) for sign in _EXHAUSTED)
    return isinstance(error, MemoryError) or (said and isinstance(error, _OF_MEMORY))


@contextmanager
def naming_a_smaller_batch(batch_size: int, advice: Callable[[int], str]) -> Generator[None]:
    """Turn running out of memory, the device's or the host's, into an error that says what helps.

    Args:
        batch_size: In use.
        advice: Says how to go on with batches of another size.

    Raises:
        MemoryExhausted: If the memory does not suffice.
    """
    try:
        yield
    except (*_OF_MEMORY, PluginError) as error:
        cause = error.__cause__ if isinstance(error, PluginError) else error  # a head's, say
        if not _tells_of_memory(cause):
            raise
        text = str(cause)
        what = f" ({text.splitlines()[0][:160]})" if text else ""
        smaller = (
            f"A batch of {batch_size // 2} needs about half: {advice(batch_size // 2)}"
            if batch_size > 1
            else "Batches cannot be smaller than one; train less of the network (--train-from), or"
            " use a smaller --image-size"
        )
        raise MemoryExhausted(
            f"The memory of {jax.devices()[0].device_kind} does not suffice for batches of"
            f" {batch_size}{what}.\n{smaller}."
        ) from error
