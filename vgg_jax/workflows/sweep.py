"""A sweep: heads and numbers to choose from, each trained on the same kept features, ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import ResolvedConfig
from vgg_jax.errors import ConfigError, TrainingError
from vgg_jax.progress import Progress
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.run_files import RunFiles
from vgg_jax.training.run_folder import RunFolder, claim_folder
from vgg_jax.workflows.candidate_trainings import Outcome, Shared, Work
from vgg_jax.workflows.candidates import Candidate, candidates_of, named_as_there
from vgg_jax.workflows.run import Run
from vgg_jax.workflows.runs import run_folders

_LESS_MEMORY = (
    "Less memory is needed by smaller heads, by fewer values at a time where they are trained side"
    " by side, and by smaller batches in another folder: --batch-size … --run …\n"
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        path: The folder that holds the candidates' runs.
        outcomes: What became of each, the best first, those that failed last.
    """

    path: Path
    outcomes: list[Outcome]

    @property
    def best(self) -> Run:
        """The best candidate's run."""
        return self.outcomes[0].run

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "sweep": str(self.path),
            "candidates": [outcome.as_dict() for outcome in self.outcomes],
            "best": str(self.best.path),
        }


def sweep(
    *, allow_local_code: bool = False, progress: Progress | None = None, **options: Any
) -> Sweep:
    """Train a classifier in several ways, and rank them.

    Args:
        allow_local_code: Whether plugins in files that runs carry may be run, to go on with them.
        progress: Receives what happens; silent by default.
        **options: The fields of `vgg_jax.config.TrainConfig`, all optional. `head`, `optimizer`,
            `learning_rate`, `weight_decay` and `label_smoothing` may be lists: each combination is
            a candidate. `run` is the folder that holds their runs; candidates that it has already
            are gone on with.

    Raises:
        VggJaxError: If an option, the data, the weights or a run folder cannot be used, or no
            candidate could be trained.
    """
    folder = options.pop("run", None)
    return run_sweep(
        candidates_of(options),
        folder,
        progress or Progress(),
        allow_local_code=allow_local_code,
    )


def run_sweep(
    candidates: Sequence[Candidate],
    folder: str | None,
    progress: Progress,
    interruption: Interruption | None = None,
    *,
    allow_local_code: bool = False,
) -> Sweep:
    """Train candidates; errors as for `sweep`.

    Args:
        candidates: What to train.
        folder: Holds their runs. Default: the first free `runs/<data>-sweep-<n>`.
        progress: Receives what happens.
        interruption: As for `vgg_jax.workflows.train.run_training`.
        allow_local_code: As for `sweep`.
    """
    keep_compiled_programs(progress)
    path = Path(folder).expanduser() if folder else None
    if path is not None:
        candidates = named_as_there(candidates, _configs(path))
    new = [c for c in candidates if path is None or RunFolder(path / c.name).is_free()]
    shared = Shared.open(new, progress) if new else None
    path = path or claim_folder(candidates[0].config.data, "sweep")
    work = Work(path, progress, interruption, len(candidates))
    outcomes = [
        work.resume(candidate, allow_local_code=allow_local_code)
        for candidate in candidates
        if candidate not in new
    ]
    if shared is not None:
        outcomes += work.train(new, shared)
    failed = [outcome for outcome in outcomes if outcome.failure]
    advice = _LESS_MEMORY if any(outcome.exhausted for outcome in failed) else ""
    if len(failed) == len(outcomes):
        raise TrainingError(
            f"No candidate could be trained to the end; {failed[0].candidate.name}:"
            f" {failed[0].failure}\n{advice}What became of each: vgg-jax runs {path}"
        )
    if advice:
        progress.note(advice.rstrip())
    done = [outcome for outcome in outcomes if not outcome.failure]
    return Sweep(path, sorted(done, key=lambda outcome: outcome.rank, reverse=True) + failed)


def _configs(path: Path) -> dict[str, ResolvedConfig]:
    """Return the options of the runs in a folder, by name."""
    found: dict[str, ResolvedConfig] = {}
    folders = run_folders(path) if path.is_dir() else ()
    for folder in folders:
        if folder.parent != path:  # a run by itself, or one that is no candidate
            continue
        with suppress(ConfigError):  # told when that run is to be gone on with
            found[folder.name] = RunFiles(folder).read_written_config()
    return found
