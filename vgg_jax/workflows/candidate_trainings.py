"""The trainings of a sweep: what its candidates have in common, and each brought to its end."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import DataSet, Split
from vgg_jax.errors import (
    ConfigError,
    MemoryExhausted,
    OtherOptionsError,
    TrainingDiverged,
    TrainingError,
    TrainingInterrupted,
)
from vgg_jax.model.classifier import Parameters
from vgg_jax.model.freezing import label_parameters, split_parameters
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.plugins import Plugin, find_plugin
from vgg_jax.progress import Progress
from vgg_jax.training.epoch import Feed
from vgg_jax.training.feature_places import why_not_kept
from vgg_jax.training.features import Features
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.memory import naming_a_smaller_batch
from vgg_jax.training.position import Position
from vgg_jax.training.room import Memory
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.side_by_side import (
    Lane,
    StackedSteps,
    fit_side_by_side,
    wins_side_by_side,
)
from vgg_jax.training.steps import Hyperparameters, Steps
from vgg_jax.workflows.announce import announce_code
from vgg_jax.workflows.backbone import OpenedBackbone, open_backbone
from vgg_jax.workflows.candidate_progress import CandidateProgress
from vgg_jax.workflows.candidates import Candidate
from vgg_jax.workflows.feed import Source, make_feed, open_features, open_training_data, pooled
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.resume import resume_training
from vgg_jax.workflows.run import Run
from vgg_jax.workflows.session import Session, chain_of, limits_of, warn_of_options
from vgg_jax.workflows.train import found_out

_FAILS_ALONE = (TrainingDiverged, MemoryExhausted)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        candidate: What was trained.
        run: Its run.
        failure: Why its training could not go on, in a line; empty if it is complete.
        exhausted: Whether that is for want of memory.
    """

    candidate: Candidate
    run: Run
    failure: str = ""
    exhausted: bool = False

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


class Common(NamedTuple):
    """Features that candidates have in common, and where there is room beside them."""

    features: Mapping[Split, Features]
    memory: Memory


@dataclasses.dataclass(frozen=True)
class Shared:
    """What candidates have in common.

    Attributes:
        data: Their data.
        opened: Their backbone.
        source: What their features are computed with.
        pools: Whether these are pooled; else each head pools for itself.
        trained: The trained parameters of each head, abstract.
        steps: The programs of sessions so far, by head, with its code, and optimizer: nothing else
            that candidates differ in changes a program.
    """

    data: DataSet
    opened: OpenedBackbone
    source: Source
    pools: bool
    trained: Mapping[str, dict[str, jax.ShapeDtypeStruct]]
    steps: dict[tuple[Plugin, str, str], Steps] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, candidates: Sequence[Candidate], progress: Progress) -> Shared:
        """Open data and backbone, and try each head, so that what is wrong is told at once."""
        config = candidates[0].config  # they differ in nothing that features depend on
        of_heads = {candidate.config.head: candidate.config for candidate in candidates}
        announce_code(progress, "head", map(parse_choice, of_heads))
        announce_code(progress, "augmentation", map(parse_choice, config.augment))
        chain = chain_of(config)
        data = open_training_data(config, progress)
        opened = open_backbone(config.weights, progress)
        classes = len(data.class_names)
        trained = {
            head: _trained(build_functional(opened, of_head, classes)[1], of_head)
            for head, of_head in of_heads.items()
        }
        # The smallest, because a session has the optimizer's numbers, too.
        config = min(of_heads.values(), key=lambda of_head: _size_of(trained[of_head.head]))
        functional, parameters = build_functional(opened, config, classes)
        with _naming_less(config):
            source = Session.start(config, functional, parameters, chain, classes).source
        pools = len(of_heads) == 1
        if not pools:
            functional = dataclasses.replace(functional, pools=False)
            # Each head takes as many batches at once as suits it.
            steps = dataclasses.replace(source.steps, functional=functional, most_batches=1)
            source = dataclasses.replace(source, steps=steps)
        return cls(data, opened, source, pools, trained)

    def session(self, config: ResolvedConfig, progress: Progress) -> Session:
        """Return a session of a candidate, with the frozen parameters that all have in common."""
        classes = len(self.data.class_names)
        # Of a file the code counts, which may have been edited since the candidate before.
        plugin = find_plugin("head", parse_choice(config.head).ref)
        functional, parameters = build_functional(self.opened, config, classes, progress)
        frozen = self.source.frozen
        # Copied, because steps take over the memory of what they train, and some of it is the
        # backbone's.
        parameters = {
            path: frozen[path] if path in frozen else jnp.copy(value)
            for path, value in parameters.items()
        }
        alike = plugin, config.head, config.optimizer
        session = Session.start(
            config, functional, parameters, self.source.chain, classes, self.steps.get(alike)
        )
        self.steps[alike] = session.steps
        return session

    def feed(self, common: Common, session: Session) -> Feed:
        """Return what gives a candidate its batches."""
        features = common.features
        if not self.pools:
            features = pooled(features, session.source, common.memory)
        return make_feed(self.source, self.data, features)


@dataclasses.dataclass
class Work:
    """The trainings of a sweep, of which `begun` are begun."""

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
            _refuse_to_stop_later(candidate, run)
            with self._interruptible(), _naming_less(candidate.config):
                resume_training(
                    given, progress, self.interruption, allow_local_code=allow_local_code
                )
        except _FAILS_ALONE as error:
            return self._outcome(candidate, run, error)
        except OtherOptionsError as error:
            raise ConfigError(
                f"{run.path} was begun otherwise: {error.differences}. Leave that as it was, or"
                " name another folder by --run."
            ) from error
        return self._outcome(candidate, run)

    def train(self, candidates: Sequence[Candidate], shared: Shared) -> list[Outcome]:
        """Train new candidates: in turn, or side by side where that is faster."""
        warn_of_options(shared.source.config, self.progress)
        outcomes: list[Outcome] = []
        while len(outcomes) < len(candidates):
            outcomes += self._train_on_a_feed(candidates[len(outcomes) :], shared)
        return outcomes

    def _train_on_a_feed(self, candidates: Sequence[Candidate], shared: Shared) -> list[Outcome]:
        """Train candidates until the memory is exhausted: what is kept in it may be spoilt then."""
        gc.collect()  # or heads and errors of before hold their arrays a while
        config, chain = shared.source.config, shared.source.chain
        memory = Memory(config, shared.source.mesh)
        with open_features(shared.source, shared.data, memory, self.progress) as features:
            common = Common(features, memory)
            if why_not_kept(config, chain):
                self.progress.note(
                    "So each candidate that is trained in turn computes its own features."
                )
            outcomes: list[Outcome] = []
            for group in _alike(candidates):
                trained = shared.trained[group[0].config.head]
                if wins_side_by_side(trained, len(group), shared.source.mesh):
                    trainings = [partial(self._train_side_by_side, group)]
                else:
                    trainings = [partial(self._train, candidate) for candidate in group]
                for train in trainings:
                    outcomes += train(shared, common)
                    if any(outcome.exhausted for outcome in outcomes):
                        return outcomes
        return outcomes

    def _train(self, candidate: Candidate, shared: Shared, common: Common) -> list[Outcome]:
        run = RunFolder(self.path / candidate.name)
        progress = self._begin(candidate)
        with run.locked(progress.note):
            config, record = found_out(candidate.config, shared.data, shared.opened)
            run.create(config, record)
            try:
                # As being trained already here: its parameters alone may be too many.
                with self._interruptible(), run.training(), _naming_less(config):
                    session = shared.session(config, progress)
                    session.fit(
                        nullcontext(shared.feed(common, session)),
                        run,
                        Position(),
                        progress,
                        self.interruption,
                    )
            except _FAILS_ALONE as error:
                return [self._outcome(candidate, run, error)]
        return [self._outcome(candidate, run)]

    def _train_side_by_side(
        self, group: Sequence[Candidate], shared: Shared, common: Common
    ) -> list[Outcome]:
        config = group[0].config
        runs = [RunFolder(self.path / candidate.name) for candidate in group]
        lanes: list[Lane] = []
        try:
            with ExitStack() as held:
                held.callback(self.progress.close)
                limits = limits_of(config, self.interruption)
                if self.interruption:  # until all that the lanes hold is saved
                    held.enter_context(limits.interruption.listening())
                for candidate, run in zip(group, runs, strict=True):
                    held.enter_context(run.locked(self.progress.note))
                    run.create(*found_out(candidate.config, shared.data, shared.opened))
                    lanes.append(held.enter_context(Lane(run, candidate.config.learning_rate)))
                what = f"{config.head}, {len(group)} candidates side by side"
                feed = make_feed(shared.source, shared.data, common.features)
                steps = config.epochs * feed.batches_of(feed.examples)
                self.progress.work_started(f"{what} ({self._next(len(group))})", steps, "steps")
                with self._interruptible(), _naming_less(config):
                    session = shared.session(config, self.progress)
                    fit_side_by_side(
                        StackedSteps(session.steps),
                        session.state,
                        [Hyperparameters.of(candidate.config) for candidate in group],
                        session.frozen,
                        shared.feed(common, session),
                        lanes,
                        mesh=session.mesh,
                        limits=limits,
                        progress=self.progress,
                    )
        except MemoryExhausted as error:
            failures = [lane.failure or (error if lane.runs_on else None) for lane in lanes]
        else:
            failures = [lane.failure for lane in lanes]
        return [*map(self._outcome, group, runs, failures)]

    def _begin(self, candidate: Candidate) -> Progress:
        return CandidateProgress(f"{candidate.name} ({self._next()})", self.progress)

    def _next(self, count: int = 1) -> str:
        """Say which of the candidates come next."""
        first = self.begun + 1
        self.begun += count
        numbers = f"{first}" if count == 1 else f"{first} to {self.begun}"
        return f"{numbers} of {self.count}"

    def _outcome(
        self, candidate: Candidate, run: RunFolder, error: TrainingError | None = None
    ) -> Outcome:
        """Return what became of a candidate, and tell the user."""
        failure = str(error).splitlines()[0] if error else ""
        history = run.read_metrics()
        exhausted = isinstance(error, MemoryExhausted)
        outcome = Outcome(candidate, Run(run.path, history), failure, exhausted)
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


def _naming_less(config: ResolvedConfig) -> AbstractContextManager[None]:
    """Say what a sweep can do where the memory does not suffice."""
    return naming_a_smaller_batch(
        config.batch_size, lambda size: f"sweep with --batch-size {size}, or smaller heads"
    )


def _refuse_to_stop_later(candidate: Candidate, run: RunFolder) -> None:
    """Refuse to leave out early stopping, which for one run by itself means that it stays."""
    before = None
    with suppress(ConfigError):  # which is told by whoever needs it
        before = run.read_written_config().early_stop
    if before is not None and candidate.config.early_stop is None:
        raise OtherOptionsError(f"--early-stop is not given, but the run's is {before}", "")


def _trained(parameters: Parameters, config: ResolvedConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes and types of the trained parameters."""
    trained, _ = split_parameters(parameters, label_parameters(parameters, config.train_from))
    return jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), trained)


def _size_of(trained: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(value.shape) for value in trained.values())


def _alike(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Yield groups of neighbours that differ in numbers alone."""
    keyed = itertools.groupby(candidates, lambda c: (c.config.head, c.config.optimizer))
    return (list(group) for _, group in keyed)
