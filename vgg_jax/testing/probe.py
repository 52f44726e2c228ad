"""Imports plugins in a process of their own: what hangs or ends it does so to nobody else."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vgg_jax.errors import PluginError
from vgg_jax.plugins import Plugin

_START_SECONDS, _EACH_SECONDS, _LOOK_SECONDS = 180.0, 60.0, 0.05
# What plugins may rely on; the time that these take is not theirs.
_FIRST = ("jax.numpy", "flax.nnx", "vgg_jax.api", "vgg_jax.augment.chain", "vgg_jax.model.heads")


@dataclasses.dataclass(frozen=True)
class Probe:
    """What came of importing a plugin.

    Attributes:
        seconds: How long it took.
        summary: First line of its docstring; empty if it has none.
        error: Why it cannot be loaded; empty if it can.
        printed: The first line that it printed to standard output.
        ended: Whether it ended the process, or had not returned when its time was over.
    """

    seconds: float = 0.0
    summary: str = ""
    error: str = ""
    printed: str = ""
    ended: bool = False


def probe_plugins(
    plugins: Sequence[Plugin], *, seconds: float = _EACH_SECONDS
) -> dict[Plugin, Probe]:
    """Import plugins one after another, in as few processes as possible.

    Args:
        plugins: What to import.
        seconds: How long each may take; the process is ended then, and the next has a new one.
    """
    found: dict[Plugin, Probe] = {}
    waiting = list(plugins)
    while waiting:
        probes, ended = _run(waiting, seconds)
        found.update(zip(waiting, probes, strict=False))
        waiting = waiting[len(probes) :]
        if waiting:
            found[waiting.pop(0)] = Probe(error=ended, ended=True)
    return found


def _run(plugins: Sequence[Plugin], seconds: float) -> tuple[list[Probe], str]:
    """Return what a process found before it ended, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        names, results = Path(folder) / "names", Path(folder) / "results"
        names.write_text(json.dumps([dataclasses.asdict(plugin) for plugin in plugins]))
        results.touch()
        with subprocess.Popen(
            [sys.executable, "-m", __name__, str(names), str(results)],
            # No pipes: what a plugin has started might hold them open after the process.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                ended = _wait(process, results, 1 + len(plugins), seconds)
            finally:
                process.kill()
        lines = _lines(results)
    return [Probe(**json.loads(line)) for line in lines[1:]], ended


def _wait(process: subprocess.Popen[bytes], results: Path, lines: int, seconds: float) -> str:
    """Wait until there are so many lines, or no further one comes; return why none comes."""
    seen, last = 0, time.monotonic()
    while seen < lines:
        code = process.poll()  # before the lines are counted: it may write and end in between
        now = len(_lines(results))
        if now > seen:
            seen, last = now, time.monotonic()
        elif code is not None:
            return f"importing it ended the process, with code {code}"
        elif time.monotonic() - last > (seconds if seen else _START_SECONDS):
            what = "its import" if seen else "the start of the process for it"
            return f"{what} took more than {seconds if seen else _START_SECONDS:g} s"
        else:
            time.sleep(_LOOK_SECONDS)
    return ""


def _lines(results: Path) -> list[str]:
    """Return the complete lines: the process may be writing the next."""
    return results.read_text(encoding="utf-8").split("\n")[:-1]


def _main() -> None:
    """Import the plugins named in one file, and write a line for each to another."""
    names, results_file = map(Path, sys.argv[1:])
    for name in _FIRST:
        importlib.import_module(name)
    with results_file.open("a", encoding="utf-8") as results:
        print("ready", file=results, flush=True)
        for values in json.loads(names.read_text()):
            probe = _probe(Plugin(**values))
            print(json.dumps(dataclasses.asdict(probe)), file=results, flush=True)


def _probe(plugin: Plugin) -> Probe:
    printed = io.StringIO()
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(printed):
            loaded = plugin.load()
    except PluginError as error:
        ended = isinstance(error.__cause__, SystemExit)
        return Probe(time.perf_counter() - start, error=str(error), ended=ended)
    seconds = time.perf_counter() - start
    summary = next(iter((inspect.getdoc(loaded) or "").splitlines()), "")
    return Probe(seconds, summary, "", next(iter(printed.getvalue().splitlines()), ""))


if __name__ == "__main__":
    _main()
