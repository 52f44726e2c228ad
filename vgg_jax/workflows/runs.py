"""The runs in a folder: what became of them. Imports no JAX."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from vgg_jax.cache import size_of
from vgg_jax.config import read_toml
from vgg_jax.errors import RunError, VggJaxError
from vgg_jax.progress import EpochMetrics
from vgg_jax.training.run_files import CONFIG_FILE, METRICS_FILE, RECORD_FILE, STATE_FILE, RunFiles

RUNS_FOLDER = Path("runs")
Became = Literal["running", "interrupted", "failed", "done", "converted", "damaged"]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What became of a run.

    Attributes:
        path: Its folder.
        state: `running` as long as a process holds its lock; `interrupted` if one was stopped or
            killed; `failed` after an error; `converted` if it was never trained here; `damaged` if
            its own files cannot be read.
        detail: Which process is at work, or what failed, in a line.
        epochs: Completed.
        epochs_wanted: Its last epoch; None if that cannot be read.
        best: Of the completed epochs; None without any.
        age_seconds: Since it last wrote metrics or state.
        bytes: Of its files.
    """

    path: Path
    state: Became
    detail: str
    epochs: int
    epochs_wanted: int | None
    best: EpochMetrics | None
    age_seconds: float
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return dataclasses.asdict(self) | {"path": str(self.path)}


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """All that a run says of itself.

    Attributes:
        summary: As in the list of runs.
        config: Its options.
        record: The content of `run.json`.
        history: What each completed epoch gave.
        checkpoints: Names of the checkpoints, the damaged ones among them.
        resume_command: What goes on with it.
    """

    summary: RunSummary
    config: dict[str, Any]
    record: dict[str, Any]
    history: list[EpochMetrics]
    checkpoints: list[str]
    resume_command: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "summary": self.summary.as_dict(),
            "config": self.config,
            "record": self.record,
            "history": [dataclasses.asdict(metrics) for metrics in self.history],
            "checkpoints": self.checkpoints,
        }


def list_runs(folder: Path = RUNS_FOLDER) -> list[RunSummary]:
    """Summarise the runs in a folder and in the sweeps there, the one that changed last first.

    Raises:
        RunError: If there is no such folder.
    """
    if not folder.is_dir():
        raise RunError(
            f"There is no folder {folder} with runs. `vgg-jax train` makes runs in ./{RUNS_FOLDER};"
            " name another folder: vgg-jax runs DIR."
        )
    runs = [summarise_run(path) for path in run_folders(folder)]
    return sorted(runs, key=lambda run: (run.age_seconds, run.path))


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the runs in a folder and in the sweeps there, and the folder itself if it is one."""
    if _is_run(folder):
        yield folder
    for path in sorted(folder.iterdir()):
        if _is_run(path):
            yield path
            continue
        try:
            candidates = sorted(path.iterdir())
        except OSError:  # no folder, or one that is closed to us: not known to be a sweep
            continue
        yield from filter(_is_run, candidates)


def _is_run(folder: Path) -> bool:
    try:
        return (folder / RECORD_FILE).exists()
    except PermissionError:
        return True  # and a damaged one


def summarise_run(path: Path) -> RunSummary:
    """Summarise one run."""
    files = RunFiles(path)
    history: list[EpochMetrics] = []
    wanted = None
    try:
        record = files.read_record()
        wanted = int(read_toml(path / CONFIG_FILE)["epochs"])
        history = files.read_metrics()
        state, detail = _state(files, bool(record.converted_from), len(history) >= wanted)
    except (VggJaxError, OSError, KeyError, TypeError, ValueError) as error:
        state, detail = "damaged", str(error).splitlines()[0]
    times = [_changed(path / name) for name in (METRICS_FILE, STATE_FILE, RECORD_FILE)]
    return RunSummary(
        path=path,
        state=state,
        detail=detail,
        epochs=len(history),
        epochs_wanted=wanted,
        best=best_of(history, path),
        age_seconds=max(time.time() - max(times), 0.0),
        bytes=size_of(path),
    )


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _state(files: RunFiles, converted: bool, complete: bool) -> tuple[Became, str]:
    holder = files.lock.holder()
    if holder is not None:
        return "running", str(holder)
    if converted:
        return "converted", ""
    recorded = files.read_state()
    if recorded is None:
        return ("done" if complete else "interrupted"), ""
    if recorded.state == "running":
        return "interrupted", "its process was killed"
    return recorded.state, recorded.reason


def describe_run(path: Path) -> RunDescription:
    """Describe one run.

    Raises:
        RunError: If it is no run, or cannot be read.
    """
    files = RunFiles(path)
    record = files.read_record()
    return RunDescription(
        summary=summarise_run(path),
        config=read_toml(path / CONFIG_FILE),
        record=dataclasses.asdict(record),
        history=files.read_metrics(),
        checkpoints=sorted(
            str(found.relative_to(path / "checkpoints"))
            for pattern in ("epoch_*", "unfinished/step_*", "**/damaged/*")
            for found in (path / "checkpoints").glob(pattern)
        ),
        resume_command=files.resume_command(),
    )


def best_of(history: Iterable[EpochMetrics], run: Path) -> EpochMetrics | None:
    """Return the best of the epochs whose checkpoint is there; None without any."""
    folder = run / "checkpoints"
    kept = [metrics for metrics in history if (folder / f"epoch_{metrics.epoch}").is_dir()]
    return max(kept, key=lambda metrics: metrics.rank, default=None)
