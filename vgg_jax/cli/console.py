"""What the commands share: how errors end a command, how results and progress are shown."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO

import typer

from vgg_jax.errors import TrainingInterrupted, VggJaxError
from vgg_jax.plugin_packages import damaged_packages_named
from vgg_jax.progress import EpochMetrics, Progress, format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

CheckpointOption = Annotated[
    Literal["best", "latest"],
    typer.Option(help="Best by validation accuracy, or the latest epoch."),
]
WeightsOption = Annotated[
    str | None, typer.Option(help="Where the backbone is, if it was moved since the training.")
]
LocalCodeOption = Annotated[
    bool,
    typer.Option("--allow-local-code", help="Run the code of a plugin file that RUN carries."),
]
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_SECONDS_BETWEEN_LINES = 10.0
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class _Settings:
    """What holds for the command at hand."""

    tracebacks = False
    results: TextIO | None = None


def show_tracebacks() -> None:
    """From here on an expected failure shows where it came from, too."""
    _Settings.tracebacks = True


@contextmanager
def user_errors() -> Generator[None]:
    """End the command with code 1 and the message at an expected failure, with 130 at Ctrl-C.

    Meanwhile only results go to standard output: what plugins print goes to standard error.
    """
    try:
        with damaged_packages_named(), _prints_put_aside():
            yield
    except TrainingInterrupted as stop:
        say(str(stop))
        raise typer.Exit(128 + stop.signal_number) from stop
    except VggJaxError as error:
        if _Settings.tracebacks:
            traceback.print_exc()  # ends with the message
        else:
            say("\n".join([f"Error: {error}", *getattr(error, "__notes__", [])]))
        raise typer.Exit(EXIT_FAILED) from error
    except KeyboardInterrupt:
        _exit_interrupted()


@contextmanager
def _prints_put_aside() -> Generator[None]:
    _Settings.results = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _Settings.results = None


def exit_at_once_on_ctrl_c() -> None:
    """Let Ctrl-C end the process without ceremony until `interruptible` is called.

    During imports an exception would be swallowed or turned into another one by whatever is being
    imported, and there is nothing to be saved yet.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: _exit_interrupted())


def tell_failed_writes_once() -> None:
    """From here on only the first of several writes that fail at once is told of, as an error.

    TensorStore reports the others to an event loop that is closed by then, which would be printed
    as a traceback each.
    """
    shown = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            shown(unraisable)

    sys.unraisablehook = hook


@contextmanager
def importing() -> Generator[None]:
    """Import JAX, and what needs it, with the garbage collector off.

    What is there then is exempt from collections for good: to look through it would take a tenth of
    the time of `predict`.
    """
    if "jax" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def interruptible() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, so that the work at hand can be closed."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit_interrupted() -> NoReturn:
    """End the process now: its other threads may be at work, and would crash a slow farewell."""
    say("Interrupted.")
    standard_output().flush()
    os._exit(EXIT_INTERRUPTED)


def say(text: str) -> None:
    """Print to standard error, where everything but results goes."""
    print(text, file=sys.stderr, flush=True)


def standard_output() -> TextIO:
    """Return where results go, whatever `sys.stdout` is while a command runs."""
    return _Settings.results or sys.stdout


def print_line(text: str) -> None:
    """Print a line, or several, of a result."""
    print(text, file=standard_output(), flush=True)


def print_json(result: Any) -> None:
    """Print a result as one JSON object."""
    print_line(json.dumps(result))


def format_age(seconds: float) -> str:
    """Say how long ago something was, in its largest unit."""
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"


def print_table(header: list[str], rows: list[list[str]], left: int = 1) -> None:
    """Print aligned columns, the first `left` of them flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip())


def console_progress() -> Progress:
    """Return a progress bar on a terminal, plain lines elsewhere."""
    return _BarProgress() if sys.stderr.isatty() else LineProgress()


class LineProgress(Progress):
    """Progress as plain lines on standard error, at most one in ten seconds within an epoch."""

    def __init__(self) -> None:
        """Start silent."""
        self._epoch = self._epochs = self._steps = 0
        self._last_line = 0.0
        self._what, self._unit = "", "images"
        self._total = self._done = 0

    def note(self, text: str) -> None:
        """Print the sentence."""
        say(text)

    def warn(self, text: str) -> None:
        """Print the sentence as a warning."""
        say(f"Warning: {text}")

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Remember where the training stands."""
        self._epoch, self._epochs, self._steps = epoch, epochs, steps
        self._last_line = time.monotonic()

    def step_done(self, step: int, images_per_second: float, loss: float, accuracy: float) -> None:
        """Print a line now and then."""
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES and step < self._steps:
            self._last_line = time.monotonic()
            say(
                f"epoch {self._epoch}/{self._epochs}  step {step}/{self._steps}  "
                f"{_speed(images_per_second)}  loss {loss:.4f}  accuracy {accuracy:.3f}"
            )

    def epoch_done(self, metrics: EpochMetrics, best: bool) -> None:
        """Print the epoch's line."""
        say(_epoch_line(metrics, self._epochs, best))

    def work_started(self, what: str, total: int, unit: str = "images") -> None:
        """Print what starts."""
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._last_line = time.monotonic()
        say(f"{what}: {format_bytes(total) if unit == 'bytes' else f'{total} {unit}'}")

    def work_done(self, count: int) -> None:
        """Print a line now and then."""
        self._done += count
        if (
            time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES
            and self._done < self._total
        ):
            self._last_line = time.monotonic()
            shown = format_bytes if self._unit == "bytes" else str
            say(f"{self._what}: {shown(self._done)} of {shown(self._total)}")


class _BarProgress(Progress):
    """Progress as a bar of Rich on a terminal."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: Any = None
        self._in_bytes = False
        self._epochs = 0

    def _start(self, description: str, total: int, unit: str) -> None:
        in_bytes = unit == "bytes"
        if in_bytes != self._in_bytes:
            self.close()  # a bar cannot change its columns
        if self._bar is None:
            self._bar, self._in_bytes = _new_bar(in_bytes), in_bytes
            self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(description, total=total, unit=unit, text="")

    def note(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"Warning: {text}")

    def _print(self, text: str) -> None:
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        self._epochs = epochs
        self._start(f"epoch {epoch}/{epochs}", steps, "steps")

    def step_done(self, step: int, images_per_second: float, loss: float, accuracy: float) -> None:
        if self._bar is not None:
            text = f"{_speed(images_per_second)}  loss {loss:.4f}  accuracy {accuracy:.3f}"
            self._bar.update(self._task, completed=step, text=text)

    def epoch_done(self, metrics: EpochMetrics, best: bool) -> None:
        self._print(_epoch_line(metrics, self._epochs, best))

    def work_started(self, what: str, total: int, unit: str = "images") -> None:
        self._start(what, total, unit)

    def work_done(self, count: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def _new_bar(in_bytes: bool) -> Bar:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    amount = (
        (DownloadColumn(), TransferSpeedColumn())
        if in_bytes
        else (MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
    )
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *amount,
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
        transient=True,
    )


def _epoch_line(metrics: EpochMetrics, epochs: int, best: bool) -> str:
    count = metrics.skipped_steps
    skipped = f"  {count} steps skipped, not finite" if count else ""
    seconds = metrics.seconds
    took = f"{seconds:.1f} s" if seconds >= 1 else format_seconds(seconds)
    return (
        f"epoch {metrics.epoch}/{epochs}  {took}  {_speed(metrics.images_per_second)}"
        f"  loss {metrics.loss:.4f}  accuracy {metrics.accuracy:.3f}  validation loss"
        f" {metrics.validation_loss:.4f}  accuracy"
        f" {metrics.validation_accuracy:.3f}{'  best' if best else ''}{skipped}"
    )


def _speed(images_per_second: float) -> str:
    return f"{images_per_second:{',.0f' if images_per_second >= 1000 else '.1f'}} images/s"
