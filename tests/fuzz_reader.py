"""Reads many weight files as `vgg_jax.weights.child` does, each in a process of its own.

Starting Python for each file would take most of the time. `ReaderServer` starts this file as a
program instead: a process without JAX that has imported the child once, and forks for each file.
What it forks runs the child's `main`, limits and all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60  # of waiting, before a reader counts as hanging
_MOST_OUTPUT = 1 << 24


@dataclass(frozen=True)
class Reading:
    """What came of reading one file.

    Attributes:
        status: Exit status; negative for the signal that ended it.
        output: What it printed.
        errors: What it wrote to standard error.
        seconds: From its start to its end.
        processor_seconds: How long it was at work.
        peak_bytes: The most memory that it held.
    """

    status: int
    output: str
    errors: str
    seconds: float
    processor_seconds: float
    peak_bytes: int

    @property
    def reply(self) -> dict[str, Any]:
        """What the child says, `{}` if it says nothing."""
        return json.loads(self.output) if self.status == 0 else {}

    @property
    def outcome(self) -> str:
        """One word or two: `read`, `refused`, `time limit`, `memory limit`, or what went wrong."""
        if self.status < 0:
            name = signal.Signals(-self.status).name
            return {"SIGPROF": "time limit", "SIGALRM": "HANG"}.get(name, name)
        if self.status > 0:
            return "TRACEBACK"
        error = self.reply.get("error")
        if error is None:
            return "read"
        return "memory limit" if "more memory" in error else "refused"


class ReaderServer:
    """Forks readers; used as a context manager."""

    def __init__(self, cwd: Path, environment: dict[str, str]) -> None:
        """Start the program in the folder `cwd`."""
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> ReaderServer:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the program."""
        self._server.communicate(timeout=PATIENCE_SECONDS)

    def read(self, path: Path, layout: str = "", backbone_only: bool = False) -> Reading:
        """Read one file."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        job = [str(path), layout, "1" if backbone_only else ""]
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Reading(*json.loads(self._server.stdout.readline()))


def serve() -> None:
    """Read the file that each line of standard input names; answer with what came of it."""
    from vgg_jax.weights import child, torch_pth  # noqa: F401 (the latter is imported when needed)

    if "jax" in sys.modules:
        raise RuntimeError("the reader imports JAX")
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            start = time.perf_counter()
            pid = os.fork()
            if pid == 0:
                _become_reader(json.loads(line), output.fileno(), errors.fileno(), child.main)
            _, status, used = os.wait4(pid, 0)
            seconds = time.perf_counter() - start
            texts = []
            for stream in (output, errors):
                stream.seek(0)
                texts.append(stream.read(_MOST_OUTPUT).decode(errors="replace"))
        status = os.waitstatus_to_exitcode(status)
        work = used.ru_utime + used.ru_stime
        print(json.dumps([status, *texts, seconds, work, used.ru_maxrss * 1024]), flush=True)


def _become_reader(job: list[str], output: int, errors: int, main: Any) -> None:
    """Run the child's `main` as if Python had been started for it; never returns."""
    status = 1
    try:
        signal.alarm(PATIENCE_SECONDS)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        sys.argv[1:] = [*job, str(os.memfd_create("arrays"))]
        main()
        status = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            import traceback

            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
