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

_START_SECONDS, _EACH_SECONDS = 60.0, 20.0
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


def probe_plugins(plugins: Sequence[Plugin]) -> dict[Plugin, Probe]:
    """Import plugins one after another, in as few processes as possible."""
    found: dict[Plugin, Probe] = {}
    waiting = list(plugins)
    while waiting:
        probes, ended = _run(waiting)
        found.update(zip(waiting, probes, strict=False))
        waiting = waiting[len(probes) :]
        if waiting:
            found[waiting.pop(0)] = Probe(error=ended, ended=True)
    return found


def _run(plugins: Sequence[Plugin]) -> tuple[list[Probe], str]:
    """Return what a process found before it ended, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        results.touch()
        names = json.dumps([dataclasses.asdict(plugin) for plugin in plugins])
        seconds = _START_SECONDS + _EACH_SECONDS * len(plugins)
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(results)],
                input=names,
                text=True,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
            ended = f"importing it ended the process, with code {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"importing it was not done after {seconds:.0f} s"
        lines = results.read_text(encoding="utf-8").splitlines()
    return [Probe(**json.loads(line)) for line in lines], ended


def _main() -> None:
    """Import the plugins named on standard input, and write a line for each."""
    for name in _FIRST:
        importlib.import_module(name)
    with Path(sys.argv[1]).open("a", encoding="utf-8") as results:
        for values in json.load(sys.stdin):
            probe = _probe(Plugin(**values))
            results.write(json.dumps(dataclasses.asdict(probe)) + "\n")
            results.flush()


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
