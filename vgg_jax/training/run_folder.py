"""The folder of a run: `config.toml`, `run.json`, `metrics.jsonl` and `checkpoints/`."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from vgg_jax.config import ResolvedConfig, TrainConfig, read_toml
from vgg_jax.errors import RunError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.run_plugins import (
    as_used,
    as_written,
    check_plugins,
    copy_local_plugins,
    record_plugins,
)

FORMAT_VERSION = 1
BACKBONE_FOLDER = "backbone"  # of converted weights, in a run that carries its own
_PACKAGES = ("vgg-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run must know to be used again; written as `run.json`.

    Attributes:
        class_names: In the order of the logits.
        weights: Where the backbone was read from: a folder, or `random:SEED`.
        weights_digest: Of its arrays; a backbone with another digest is refused.
        examples: Number of examples by split.
        packages: Versions of the packages in use when the run was made.
        plugins: The plugins in use: kind, name, package, version, contract, options with their
            defaults; of a preset also what it stands for; of one in a file also the file's copy in
            the run and its SHA-256.
        converted_from: Name of the weight file that the run was converted from; None if it was
            trained here.
        format_version: Of the folder.
    """

    class_names: tuple[str, ...]
    weights: str
    weights_digest: str
    examples: dict[str, int]
    packages: dict[str, str]
    plugins: list[dict[str, Any]]
    converted_from: str | None = None
    format_version: int = FORMAT_VERSION


class RunFolder:
    """One run on the disk."""

    def __init__(self, path: Path) -> None:
        """Stand for the run in `path`, which need not exist yet."""
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")

    def create(self, config: ResolvedConfig, record: RunRecord) -> None:
        """Make the folder and write what is known before the first step.

        Raises:
            RunError: If the folder exists or cannot be made.
        """
        self.refuse_existing()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            copy_local_plugins(config, self.path)
        except OSError as error:
            raise self._not_written(error) from error
        self.write_config(config)
        self.write_record(record)

    def refuse_existing(self) -> None:
        """Raise `RunError` if the folder exists and is not empty."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunError(
                f"The run folder {self.path} exists. Go on with it by `vgg-jax train --run"
                f" {self.path} --resume`, or name another --run."
            )

    @property
    def own_backbone(self) -> str | None:
        """The folder of converted weights that the run carries, or None."""
        folder = self.path / BACKBONE_FOLDER
        return str(folder) if folder.is_dir() else None

    def write_config(self, config: ResolvedConfig) -> None:
        """Write the configuration, resolved, as TOML."""
        self._write("config.toml", tomli_w.dumps(as_written(config).as_toml_values()))

    def change_config(self, **values: Any) -> None:
        """Write some values of the configuration anew; the others stay as they were written."""
        written = read_toml(self.path / "config.toml")
        self._write("config.toml", tomli_w.dumps(written | values))

    def write_record(self, record: RunRecord) -> None:
        """Write `run.json`."""
        self._write("run.json", json.dumps(dataclasses.asdict(record), indent=2) + "\n")

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
        plugins = self.read_record().plugins
        config = ResolvedConfig.from_values(read_toml(self.path / "config.toml"))
        check_plugins(
            config, self.path, plugins, training=training, allow_local_code=allow_local_code
        )
        return as_used(config, self.path, plugins, training=training, progress=progress)

    def read_record(self) -> RunRecord:
        """Read `run.json`.

        Raises:
            RunError: If this is no run, or one of another version.
        """
        try:
            values: dict[str, Any] = json.loads(
                (self.path / "run.json").read_text(encoding="utf-8")
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
        """Return what each completed epoch gave."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        return [EpochMetrics(**json.loads(line)) for line in file.read_text().splitlines()]

    def append_metrics(self, metrics: EpochMetrics) -> None:
        """Add one epoch to `metrics.jsonl`.

        Raises:
            RunError: If it cannot be written.
        """
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(dataclasses.asdict(metrics)) + "\n")
        except OSError as error:
            raise self._not_written(error) from error

    def cut_metrics(self, last: EpochMetrics | None) -> list[EpochMetrics]:
        """Make `last`, which a checkpoint held, the last line; returns what the file then holds.

        A line may be torn, be missing, or tell of an epoch whose checkpoint was not finished.
        Without any checkpoint the file becomes empty.

        Raises:
            RunError: If it cannot be written.
        """
        lines: list[str] = []
        if last is not None:
            file = self.path / "metrics.jsonl"
            before = file.read_text().splitlines() if file.exists() else []
            lines = [*before[: last.epoch - 1], json.dumps(dataclasses.asdict(last))]
        self._write("metrics.jsonl", "".join(line + "\n" for line in lines))
        return self.read_metrics()

    def _write(self, name: str, text: str) -> None:
        """Write a file of the run, whole or not at all."""
        scratch = self.path / f"{name}.tmp"
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(self.path / name)
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> RunError:
        return RunError(
            f"The run folder {self.path} cannot be written: {error.strerror}. Make room or choose "
            "another --run; what was complete before can be gone on with by --resume."
        )


def new_record(
    config: ResolvedConfig,
    *,
    class_names: tuple[str, ...],
    weights: str,
    weights_digest: str,
    examples: dict[str, int],
    converted_from: str | None = None,
) -> RunRecord:
    """Build the record of a new run; adds the versions of packages and plugins."""
    return RunRecord(
        class_names=class_names,
        weights=weights,
        weights_digest=weights_digest,
        examples=examples,
        packages={name: metadata.version(name) for name in _PACKAGES},
        plugins=record_plugins(config),
        converted_from=converted_from,
    )


def claim_run_path(config: TrainConfig, parent: Path = Path("runs")) -> Path:
    """Make the first folder `runs/<data>-<head>-<n>` that does not exist; returns its path.

    Raises:
        RunError: If it cannot be made.
    """
    data = re.sub(r"[^\w.-]+", "-", Path(config.data).name or Path(config.data).resolve().name)
    head = parse_choice(config.head).ref.rpartition("/")[2].rpartition("#")[2]
    n = 1
    while True:
        path = parent / f"{data.strip('-.') or 'data'}-{head}-{n}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            n += 1
        except OSError as error:
            raise RunError(f"The run folder {path} cannot be made: {error.strerror}.") from error
