"""A sweep: heads and numbers to choose from, each trained on the same kept features, ranked."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import DataSet
from vgg_jax.errors import TrainingDiverged, TrainingError, TrainingInterrupted
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress
from vgg_jax.training.epoch import Feed
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.keeping import why_not_kept
from vgg_jax.training.position import Position
from vgg_jax.training.run_folder import RunFolder, claim_folder
from vgg_jax.workflows.announce import announce_code
from vgg_jax.workflows.backbone import OpenedBackbone, open_backbone
from vgg_jax.workflows.candidates import Candidate, candidates_of
from vgg_jax.workflows.feed import Source, open_feed, open_training_data, pooled
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.resume import resume_training
from vgg_jax.workflows.run import Run
from vgg_jax.workflows.session import Session, chain_of, warn_of_loss
from vgg_jax.workflows.train import found_out


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        candidate: What was trained.
        run: Its run.
        failure: Why its training could not go on, in a line; empty if it is complete.
    """

    candidate: Candidate
    run: Run
    failure: str = ""

    @property
    def rank(self) -> tuple[float, float]:
        """What makes a candidate the best: its best epoch's validation accuracy, then the loss."""
        return self.run.best.rank[:2]

    @property
    def seconds(self) -> float:
        """Spent on its epochs."""
        return sum(metrics.seconds for metrics in self.run.history)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "name": self.candidate.name,
            "run": str(self.run.path),
            "differs": dict(self.candidate.differs),
            "best": dataclasses.asdict(self.run.best) if self.run.history else None,
            "epochs": len(self.run.history),
            "seconds": self.seconds,
            "failure": self.failure or None,
        }


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
    new = [c for c in candidates if path is None or RunFolder(path / c.name).is_free()]
    shared = _Shared.open(new, progress) if new else None
    path = path or claim_folder(candidates[0].config.data, "sweep")
    work = _Work(path, progress, interruption, len(candidates))
    outcomes = [
        work.resume(candidate, allow_local_code=allow_local_code)
        for candidate in candidates
        if candidate not in new
    ]
    if shared is not None:
        outcomes += work.train(new, shared)
    failed = [outcome for outcome in outcomes if outcome.failure]
    if len(failed) == len(outcomes):
        raise TrainingError(
            f"No candidate could be trained to the end; {failed[0].candidate.name}:"
            f" {failed[0].failure}\nWhat became of each: vgg-jax runs {path}"
        )
    done = [outcome for outcome in outcomes if not outcome.failure]
    return Sweep(path, sorted(done, key=lambda outcome: outcome.rank, reverse=True) + failed)


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What candidates have in common.

    Attributes:
        data: Their data.
        opened: Their backbone.
        source: What their features are computed with.
        pools: Whether these are pooled; else each head pools for itself.
    """

    data: DataSet
    opened: OpenedBackbone
    source: Source
    pools: bool

    @classmethod
    def open(cls, candidates: Sequence[Candidate], progress: Progress) -> _Shared:
        """Open data and backbone, and try each head, so that what is wrong is told at once."""
        config = candidates[0].config  # they differ in nothing that features depend on
        of_heads = {candidate.config.head: candidate.config for candidate in candidates}
        announce_code(progress, "head", map(parse_choice, of_heads))
        announce_code(progress, "augmentation", map(parse_choice, config.augment))
        chain = chain_of(config)
        data = open_training_data(config, progress)
        opened = open_backbone(config.weights, progress)
        classes = len(data.class_names)
        for other in [*of_heads.values()][1:]:
            build_functional(opened, other, classes)
        functional, parameters = build_functional(opened, config, classes)
        source = Session.start(config, functional, parameters, chain, classes).source
        pools = len(of_heads) == 1
        if not pools:
            functional = dataclasses.replace(functional, pools=False)
            steps = dataclasses.replace(source.steps, functional=functional)
            source = dataclasses.replace(source, steps=steps)
        return cls(data, opened, source, pools)

    def session(self, config: ResolvedConfig, progress: Progress) -> Session:
        """Return a session of a candidate, with the frozen parameters that all have in common."""
        classes = len(self.data.class_names)
        functional, parameters = build_functional(self.opened, config, classes, progress)
        # Copied, because steps take over the memory of what they train, which the backbone's layers
        # are part of.
        parameters = jax.tree.map(jnp.copy, parameters) | self.source.frozen
        return Session.start(config, functional, parameters, self.source.chain, classes)


@dataclasses.dataclass
class _Work:
    """The trainings of a sweep."""

    path: Path
    progress: Progress
    interruption: Interruption | None
    count: int
    begun: int = 0

    def resume(self, candidate: Candidate, *, allow_local_code: bool) -> Outcome:
        """Go on with a candidate that was begun before; a complete one is taken as it is."""
        run = RunFolder(self.path / candidate.name)
        given = {**candidate.config.as_toml_values(), "run": str(run.path)}
        progress = self._begin(candidate)
        try:
            with self._interruptible():
                resume_training(
                    given, progress, self.interruption, allow_local_code=allow_local_code
                )
        except TrainingDiverged as error:
            return self._outcome(candidate, run, error)
        return self._outcome(candidate, run)

    def train(self, candidates: Sequence[Candidate], shared: _Shared) -> list[Outcome]:
        """Train new candidates, in turn."""
        config, chain = shared.source.config, shared.source.chain
        warn_of_loss(config, self.progress)
        with open_feed(shared.source, shared.data, self.progress) as feed:
            if why_not_kept(config, chain):
                self.progress.note(
                    "So the candidates have no features in common: each computes its own."
                )
            return [self._train(candidate, shared, feed) for candidate in candidates]

    def _train(self, candidate: Candidate, shared: _Shared, feed: Feed) -> Outcome:
        run = RunFolder(self.path / candidate.name)
        progress = self._begin(candidate)
        with run.locked(progress.note):
            config, record = found_out(candidate.config, shared.data, shared.opened)
            run.create(config, record)
            session = shared.session(config, progress)
            if not shared.pools:
                feed = pooled(feed, session.steps.pool)
            try:
                with self._interruptible():
                    session.fit(nullcontext(feed), run, Position(), progress, self.interruption)
            except TrainingDiverged as error:
                return self._outcome(candidate, run, error)
        return self._outcome(candidate, run)

    def _begin(self, candidate: Candidate) -> Progress:
        self.begun += 1
        return _OfCandidate(candidate.name, f"{self.begun} of {self.count}", self.progress)

    def _outcome(
        self, candidate: Candidate, run: RunFolder, error: TrainingDiverged | None = None
    ) -> Outcome:
        """Return what became of a candidate, and tell the user."""
        failure = str(error).splitlines()[0] if error else ""
        outcome = Outcome(candidate, Run(run.path, run.read_metrics()), failure)
        if failure:
            self.progress.warn(f"{candidate.name} failed: {failure}")
            return outcome
        best = outcome.run.best
        self.progress.note(
            f"{candidate.name}: best epoch {best.epoch} of {len(outcome.run.history)}, validation"
            f" accuracy {best.validation_accuracy:.3f}, loss {best.validation_loss:.4f}"
        )
        return outcome

    @contextmanager
    def _interruptible(self) -> Generator[None]:
        """Add to the message of an interruption how to go on with all candidates."""
        try:
            yield
        except TrainingInterrupted as stop:
            raise TrainingInterrupted(
                f"{stop}\nGo on with the sweep: the same command with --run"
                f" {shlex.quote(str(self.path))}",
                stop.signal_number,
            ) from stop


class _OfCandidate(Progress):
    """Shows the training of one candidate as one piece of work; the table tells what it gave."""

    def __init__(self, name: str, number: str, progress: Progress) -> None:
        self._name, self._number, self._progress = name, number, progress
        self._started, self._done = False, 0

    def note(self, text: str) -> None:
        self._progress.note(f"{self._name}: {text}")

    def warn(self, text: str) -> None:
        self._progress.warn(f"{self._name}: {text}")

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        self._done = 0
        if not self._started:
            self._started = True
            total = (epochs - epoch + 1) * steps
            self._progress.work_started(f"{self._name} ({self._number})", total, "steps")

    def step_done(self, step: int, images_per_second: float, loss: float, accuracy: float) -> None:
        self._progress.work_done(step - self._done)
        self._done = step

    def work_started(self, what: str, total: int, unit: str = "images") -> None:
        self._progress.work_started(what, total, unit)

    def work_done(self, count: int) -> None:
        self._progress.work_done(count)

    def close(self) -> None:
        self._progress.close()
