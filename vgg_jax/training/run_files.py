"""The small files of a run: its configuration, its record, its metrics and its state.

Importing this brings no JAX, so that a list of runs is quick.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tomli_w

from vgg_jax.config import ResolvedConfig, read_toml
from vgg_jax.errors import RunError, TrainingInterrupted, VggJaxError, cause_of
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.run_lock import RunLock

FORMAT_VERSION = 1
BACKBONE_FOLDER = "backbone"  # of converted weights, in a run that carries its own
CONFIG_FILE, RECORD_FILE = "config.toml", "run.json"
METRICS_FILE, STATE_FILE = "metrics.jsonl", "state.json"
SCRATCH = ".tmp"  # ends the name of a file that is being written


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run must know to be used again; written as `run.json`.

    Attributes:
        class_names: In the order of the logits.
        weights: Where the backbone was read from: a folder, or `random:SEED`.
        weights_digest: Of its arrays; a backbone with another digest is refused.
        examples: Number of examples by split.
        data_digests: By split, of the contents and classes of its examples in their order, as they
            were when the training used them last; empty in a run that was made without.
        packages: Versions of the packages in use when the run was made.
        plugins: The plugins in use: kind, name, package, version, contract, options with their
            defaults; of a preset also what it stands for; of one in a file also the file's copy in
            the run and its SHA-256.
        converted_from: Name of the weight file that the run was converted from; None if it was
            trained here.
        overrides: What was changed on a resume: epoch, step, and old and new options.
        format_version: Of the folder.
    """

    class_names: tuple[str, ...]
    weights: str
    weights_digest: str
    examples: dict[str, int]
    packages: dict[str, str]
    plugins: list[dict[str, Any]]
    data_digests: dict[str, str] = dataclasses.field(default_factory=dict)
    converted_from: str | None = None
    overrides: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    format_version: int = FORMAT_VERSION


State = Literal["running", "interrupted", "failed", "done"]


@dataclasses.dataclass(frozen=True)
class RunState:
    """What became of a run's training; `state.json`.

    Attributes:
        state: `running` also where a process was killed; the run's lock tells.
        reason: Of a failure, in a line.
    """

    state: State
    reason: str = ""


class RunFiles:
    """The small files of one run."""

    def __init__(self, path: Path) -> None:
        """Stand for the run in `path`, which need not exist yet."""
        self.path = path
        self.lock = RunLock(path)

    @property
    def own_backbone(self) -> str | None:
        """The folder of converted weights that the run carries, or None."""
        folder = self.path / BACKBONE_FOLDER
        return str(folder) if folder.is_dir() else None

    def resume_command(self, options: str = "") -> str:
        """Return the command that goes on with the run, to be pasted into a shell."""
        command = f"vgg-jax train --run {shlex.quote(str(self.path))} --resume"
        with suppress(RunError):
            if any("file" in plugin for plugin in self.read_record().plugins):
                command += " --allow-local-code"
        return f"{command} {options}".rstrip()

    def write_config(self, config: ResolvedConfig) -> None:
        """Write the configuration, resolved, as TOML."""
        from vgg_jax.training.run_plugins import as_written  # brings JAX

        self._write(CONFIG_FILE, tomli_w.dumps(as_written(config).as_toml_values()))

    def change_config(self, **values: Any) -> None:
        """Write some values of the configuration anew; the others stay as they were written."""
        written = read_toml(self.path / CONFIG_FILE)
        self._write(CONFIG_FILE, tomli_w.dumps(written | values))

    def write_record(self, record: RunRecord) -> None:
        """Write `run.json`."""
        self._write(RECORD_FILE, json.dumps(dataclasses.asdict(record), indent=2) + "\n")

    def read_config(
        self,
        *,
        training: bool = False,
        allow_local_code: bool = False,
        progress: Progress | None = None,
    ) -> ResolvedConfig:
        """Read the configuration, and check that the plugins it names are here.

        Args:
            training: Whether the augmentations are needed too.
            allow_local_code: Whether code of files that the run carries may be run.
            progress: Told of plugins whose defaults have changed; silent by default.

        Raises:
            RunError: If this is no run, or its plugins cannot be used.
            ConfigError: If the file was changed to something that is no configuration.
        """
        from vgg_jax.training.run_plugins import as_used, check_plugins  # brings JAX

        plugins = self.read_record().plugins
        config = self.read_written_config()
        check_plugins(
            config, self.path, plugins, training=training, allow_local_code=allow_local_code
        )
        return as_used(config, self.path, plugins, training=training, progress=progress)

    def read_written_config(self) -> ResolvedConfig:
        """Read the configuration as it stands, whatever plugins it names.

        Raises:
            ConfigError: If the file cannot be read, or is no configuration.
        """
        return ResolvedConfig.from_values(read_toml(self.path / CONFIG_FILE))

    def read_record(self) -> RunRecord:
        """Read `run.json`.

        Raises:
            RunError: If this is no run, or one of another version.
        """
        try:
            values: dict[str, Any] = json.loads(
                (self.path / RECORD_FILE).read_text(encoding="utf-8")
            )
        except FileNotFoundError as error:
            missing = "has no run.json" if self.path.is_dir() else "does not exist"
            raise RunError(
                f"{self.path} is not a run: it {missing}. Runs are made by `vgg-jax train`."
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / 'run.json'} cannot be read: {error}.") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            made_by = (
                values.get("packages", {}).get("vgg-jax", "unknown")
                if isinstance(values, dict)
                else "unknown"
            )
            raise RunError(
                f"{self.path} has format version {version!r} (made by vgg-jax {made_by}); this is"
                f" vgg-jax {metadata.version('vgg-jax')}, which reads version {FORMAT_VERSION}. Use"
                " that version of vgg-jax."
            )
        try:
            return RunRecord(**{**values, "class_names": tuple(values["class_names"])})
        except (TypeError, KeyError) as error:
            raise RunError(f"{self.path / 'run.json'} is incomplete: {error}.") from error

    def read_metrics(self) -> list[EpochMetrics]:
        """Return what each completed epoch gave.

        Raises:
            RunError: If the file was damaged; going on with the run writes it anew.
        """
        file = self.path / METRICS_FILE
        try:
            text = file.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # the last line may be on its way to the disk
            return [EpochMetrics(**json.loads(line)) for line in whole.splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{file} cannot be read: {error}. {self.resume_command()} writes it anew."
            ) from error

    @contextmanager
    def training(self) -> Generator[None]:
        """Record that the run is being trained, and then how that ended."""
        self.write_state(RunState("running"))
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, (TrainingInterrupted, KeyboardInterrupt))
            reason = "" if interrupted else _in_a_line(error)
            with suppress(RunError):  # the error at hand says more than that the disk is full
                self.lock.check()  # else another process has the run, and tells its state
                self.write_state(RunState("interrupted" if interrupted else "failed", reason))
            raise
        self.write_state(RunState("done"))

    def write_metrics(self, history: Iterable[EpochMetrics]) -> None:
        """Make `metrics.jsonl` what a checkpoint holds; a line of it may be torn or missing."""
        self._write(METRICS_FILE, "".join(map(metrics_line, history)))

    def read_state(self) -> RunState | None:
        """Read what became of the training; None where that was not recorded."""
        try:
            return RunState(**json.loads((self.path / STATE_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write_state(self, state: RunState) -> None:
        """Write `state.json`."""
        self._write(STATE_FILE, json.dumps(dataclasses.asdict(state)) + "\n")

    def _write(self, name: str, text: str) -> None:
        """Write a file of the run, whole or not at all."""
        scratch = self.path / f"{name}{SCRATCH}"
        try:
            with scratch.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave an empty file under the name
            scratch.replace(self.path / name)
        except OSError as error:
            raise self.not_written(error) from error

    def not_written(self, error: OSError) -> RunError:
        """Return the error that says that the folder cannot be written, and why."""
        return RunError(
            f"The run folder {self.path} cannot be written: {error.strerror}. Make room or choose "
            "another --run; what was complete before can be gone on with by --resume."
        )


def metrics_line(metrics: EpochMetrics) -> str:
    """Return an epoch's line of `metrics.jsonl`."""
    return json.dumps(dataclasses.asdict(metrics)) + "\n"


def _in_a_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, VggJaxError) else cause_of(error)
    return text.splitlines()[0] if text else type(error).__name__
