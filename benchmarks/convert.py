"""Conversions of files as large as the published ones: time and peak memory, in fresh processes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

TESTS = Path(__file__).parent.parent / "tests"

# A user's Python keeps compiled modules, even where the shell that runs this says otherwise.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
# Each figure includes compiling, but for those that say otherwise.
ENVIRONMENT["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# ru_maxrss of a process started from a large one would begin with that one's; VmHWM does not.
PEAK = """
import atexit
def report_peak():
    import resource
    from pathlib import Path
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak[0] if peak else usage)  # on macOS, which has no /proc, it is in bytes too
atexit.register(report_peak)
"""
WRITE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from weight_files import keras_arrays, write_keras_arrays
arrays = keras_arrays(1.0, seed=0, top=sys.argv[2] == "top", classes=1000)
write_keras_arrays(Path(sys.argv[1]), arrays)
"""
IMPORTS = "import jax, flax.nnx, orbax.checkpoint"
CONVERT = """
import sys
from pathlib import Path
from vgg_jax.workflows.convert import convert_weights
convert_weights(sys.argv[1], Path(sys.argv[2]))
"""
LOAD = """
import sys, time
from pathlib import Path
import jax, flax.nnx, orbax.checkpoint
from vgg_jax.weights.store import load_weights
start = time.perf_counter()
load_weights(Path(sys.argv[1]), with_top=True)
print(time.perf_counter() - start)
"""


def keeping_programs(cache: Path) -> dict[str, str]:
    """Return the environment of processes that share compiled programs in a cache folder."""
    return {"JAX_ENABLE_COMPILATION_CACHE": "true", "VGG_JAX_CACHE": str(cache)}


class Measured(NamedTuple):
    """What a process came to.

    Attributes:
        seconds: From start to end.
        peak_mb: Of its memory.
        others_cores: How many cores other processes kept busy meanwhile; figures count if about 0.
        output: What it printed.
    """

    seconds: float
    peak_mb: float
    others_cores: float
    output: str


def measure(
    code: str,
    *arguments: str | Path,
    python: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Measured:
    """Run code in a fresh Python; `arguments` are its `sys.argv[1:]`."""
    start, busy = time.perf_counter(), _others_busy_seconds()
    done = subprocess.run(
        [python, "-c", PEAK + code, *arguments],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **(environment or {})},
    )
    seconds = time.perf_counter() - start
    others_cores = (_others_busy_seconds() - busy) / seconds
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nfailed: {' '.join(map(str, arguments))}")
    output, _, peak = done.stdout.rstrip("\n").rpartition("\n")
    return Measured(seconds, int(peak) / 1e6, round(others_cores, 2), output)


def _others_busy_seconds() -> float:
    """Return the processors' busy seconds since the start, those of finished children left out."""
    times, children = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.user + times.system + times.nice - children.ru_utime - children.ru_stime


def write_weights(path: Path, *, top: bool = False) -> Path:
    """Write seeded weights of full width in the published layout, in a process of its own."""
    if not path.exists():
        measure(WRITE, path, "top" if top else "notop")
        os.sync()  # or what is measured next would wait for the disk to take this file too
    return path


def conversions(folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Convert a file without and one with the top, beside a process that only imports.

    Args:
        folder: For the files and what they are converted into.
        repeats: The fastest of so many is what counts.
    """
    for name, top in (("notop", False), ("top", True)):
        path = write_weights(folder / f"{name}.h5", top=top)
        size_mb = path.stat().st_size / 1e6
        imports, runs = [], []
        for i in range(repeats):
            imports.append(measure(IMPORTS))
            runs.append(measure(CONVERT, path, folder / f"{name}-{i}"))
        least, best = min(imports), min(runs)
        loads = [float(measure(LOAD, folder / f"{name}-0").output) for _ in range(repeats)]
        yield {
            "file_mb": round(size_mb, 1),
            "seconds": round(best.seconds, 2),
            "seconds_imports": round(least.seconds, 2),
            "seconds_beyond": round(best.seconds - least.seconds, 2),
            "seconds_load": round(min(loads), 2),
            "others_cores": best.others_cores,
            "peak_mb": round(best.peak_mb),
            "peak_mb_imports": round(least.peak_mb),
            "peak_beyond_per_file": round((best.peak_mb - least.peak_mb) / size_mb, 2),
        }
