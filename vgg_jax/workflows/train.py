"""Training: from a configuration to a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.augment.chain import Chain, build_chain
from vgg_jax.config import ResolvedConfig, TrainConfig
from vgg_jax.data.examples import DataSet, Split
from vgg_jax.errors import ConfigError, DataError
from vgg_jax.model.classifier import Functional, Parameters
from vgg_jax.model.freezing import label_parameters, split_parameters, train_only
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.checkpoints import Restored, Unfinished, fill_leaves
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.loop import Feed, Limits, Start, fit
from vgg_jax.training.metrics import Evaluation
from vgg_jax.training.optim import make_optimizer
from vgg_jax.training.run_folder import RunFolder, claim_run_path, new_record
from vgg_jax.training.run_plugins import as_used, as_written
from vgg_jax.training.steps import Steps, Totals, TrainState, data_mesh, replicate
from vgg_jax.workflows.announce import announce_code
from vgg_jax.workflows.evaluate import evaluate
from vgg_jax.workflows.feed import (
    absolute_data,
    open_training_data,
    plain_batches,
    steps_per_epoch,
    training_batches,
)
from vgg_jax.workflows.load import build_functional, checked, open_backbone, rebuild

# Weights are compared by digest.
_MAY_CHANGE_ON_RESUME = frozenset({"epochs", "run", "weights", "checkpoint_minutes"})
_KERAS_BINARY_WARNING = (
    "loss keras-binary is binary cross-entropy on the softmax, as in the old recipe. The accuracy"
    " that Keras printed for it took every class for a yes-or-no question and was inflated; the"
    " accuracy here is the share of pictures classified right."
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        path: Its folder.
        history: What each epoch gave, in order.
    """

    path: Path
    history: list[EpochMetrics]

    @property
    def best(self) -> EpochMetrics:
        """The epoch of highest validation accuracy; of equals the lowest loss, then the latest."""
        return max(self.history, key=lambda m: (m.validation_accuracy, -m.validation_loss, m.epoch))

    def evaluate(self, data: str | None = None, split: Split = "test") -> Evaluation:
        """Evaluate the best epoch's classifier, on a split of the run's own data by default."""
        # A head in a file: this very training has run its code; another file is refused.
        return evaluate(self.path, data=data, split=split, allow_local_code=True)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "run": str(self.path),
            "epochs": [dataclasses.asdict(metrics) for metrics in self.history],
            "best": dataclasses.asdict(self.best),
        }


def train(
    *,
    resume: bool = False,
    allow_local_code: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Train a classifier.

    Args:
        resume: Go on with the run in the folder `run`; other options then only confirm what the run
            has, but `epochs` may be another number.
        allow_local_code: Whether plugins in files that a run carries may be run on `resume`.
        progress: Receives what happens; silent by default.
        **options: The fields of `vgg_jax.config.TrainConfig`, all optional.

    Raises:
        VggJaxError: If an option, the data, the weights or the run folder cannot be used.
    """
    if resume:
        return resume_training(options, progress or Progress(), allow_local_code=allow_local_code)
    return run_training(TrainConfig.from_values(options), progress or Progress())


def run_training(
    config: TrainConfig, progress: Progress, interruption: Interruption | None = None
) -> Run:
    """Train a classifier from the start; errors as for `train`.

    Args:
        config: The options.
        progress: Receives what happens.
        interruption: Told of signals while the training can be saved; by default a signal does what
            it does elsewhere in the process.
    """
    resolved = config.resolved()
    if resolved.run:
        RunFolder(Path(resolved.run).expanduser()).refuse_existing()
    announce_code(progress, "head", [parse_choice(resolved.head)])
    announce_code(progress, "augmentation", map(parse_choice, resolved.augment))
    chain = _build_chain(resolved)
    data = open_training_data(resolved, progress)
    opened = open_backbone(resolved.weights, progress)
    functional, parameters = build_functional(opened, resolved, len(data.class_names), progress)
    resolved = dataclasses.replace(
        resolved, data=absolute_data(resolved.data), weights=opened.weights, run=None
    )
    record = new_record(
        resolved,
        class_names=data.class_names,
        weights=opened.weights,
        weights_digest=opened.digest,
        examples={name: len(examples) for name, examples in data.splits.items()},
    )
    run = RunFolder(Path(config.run).expanduser() if config.run else claim_run_path(config))
    run.create(resolved, record)
    session = _Session.start(resolved, functional, parameters, chain)
    session.fit(data, run, Start(), progress, interruption)
    return Run(run.path, run.read_metrics())


def resume_training(
    options: Mapping[str, Any],
    progress: Progress,
    interruption: Interruption | None = None,
    *,
    allow_local_code: bool = False,
) -> Run:
    """Go on with a run after its last saved step; arguments and errors as for `run_training`.

    Raises:
        ConfigError: If an option differs from the run's and would change the result.
    """
    if not options.get("run"):
        raise ConfigError("--resume needs --run, the folder of the run to go on with.")
    run = RunFolder(Path(options["run"]))
    record = run.read_record()
    config = run.read_config(training=True, allow_local_code=allow_local_code, progress=progress)
    config = _with_options(run, config, options)
    if record.converted_from:
        raise ConfigError(
            f"{run.path} was converted from {record.converted_from}, not trained here, so there is"
            f" no training to go on with. Train on its backbone: --weights {run.own_backbone}."
        )
    restored, unfinished = run.checkpoints.restore_to_go_on(progress.warn)
    history = run.cut_metrics(restored.metrics if restored else None)
    if restored is not None and restored.metrics.epoch >= config.epochs:
        epochs = restored.metrics.epoch
        progress.note(f"{run.path} is complete: {epochs} epochs. More by --epochs.")
        return Run(run.path, history)
    chain = _build_chain(config)
    data = open_training_data(config, progress)
    if data.class_names != record.class_names:
        raise DataError(
            f"The data in {config.data} now have the classes {', '.join(data.class_names)}; the run"
            f" has {', '.join(record.class_names)}."
        )
    examples = {name: len(examples) for name, examples in data.splits.items()}
    if examples != record.examples:
        raise DataError(
            f"The data in {config.data} have changed: the run started with {record.examples}, now"
            f" there are {examples}. Put them back, or train a new run."
        )
    functional, parameters = rebuild(config, record, options.get("weights") or run.own_backbone)
    run.change_config(epochs=config.epochs, checkpoint_minutes=config.checkpoint_minutes)
    session = _Session.start(config, functional, parameters, chain)
    if unfinished is not None:
        step = unfinished.step
        progress.note(f"Going on with {run.path} in epoch {unfinished.epoch}, after step {step}.")
        start = session.restore_unfinished(unfinished, parameters)
    elif restored is not None:
        progress.note(f"Going on with {run.path} after epoch {restored.metrics.epoch}.")
        start = session.restore(restored, parameters)
    else:
        progress.note(f"{run.path} has no completed epoch; starting with the first.")
        start = Start()
    session.fit(data, run, start, progress, interruption)
    return Run(run.path, run.read_metrics())


def _build_chain(config: ResolvedConfig) -> Chain:
    choices = [parse_choice(text) for text in config.augment]
    return build_chain(choices, fill=config.fill, fill_value=config.fill_value)


@dataclasses.dataclass
class _Session:
    """All that one call of `fit` needs, on the devices."""

    config: ResolvedConfig
    steps: Steps
    state: TrainState
    frozen: dict[str, jax.Array]
    chain: Chain
    mesh: jax.sharding.Mesh

    @classmethod
    def start(
        cls, config: ResolvedConfig, functional: Functional, parameters: Parameters, chain: Chain
    ) -> _Session:
        labels = label_parameters(parameters, config.train_from)
        trained, frozen = split_parameters(parameters, labels)
        optimizer = make_optimizer(
            config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        tx = train_only(optimizer, {path: labels[path] for path in trained})
        steps = Steps(
            functional,
            tx,
            config.loss,
            label_smoothing=config.label_smoothing,
            augment=chain if chain.on_device else None,
            seed=config.seed,
        )
        mesh = data_mesh()
        state = TrainState(trained, tx.init(trained), jnp.zeros((), jnp.uint32))
        return cls(config, steps, replicate(mesh, state), replicate(mesh, frozen), chain, mesh)

    def restore(self, restored: Restored, parameters: Parameters) -> Start:
        """Take over a completed epoch; `parameters` are those before the first step."""
        self._take_over(restored, restored.metrics.step, parameters)
        return Start(restored.metrics.epoch + 1, early_stopping=restored.early_stopping)

    def restore_unfinished(self, unfinished: Unfinished, parameters: Parameters) -> Start:
        """Take over an epoch under way; `parameters` are those before the first step."""
        self._take_over(unfinished, unfinished.step, parameters)
        totals = Totals(**{name: jnp.asarray(sum_) for name, sum_ in unfinished.totals.items()})
        return Start(unfinished.epoch, unfinished.seconds, totals, unfinished.early_stopping)

    def _take_over(
        self, restored: Restored | Unfinished, step: int, parameters: Parameters
    ) -> None:
        state = TrainState(
            checked(restored.trained, parameters),
            fill_leaves(self.state.optimizer, restored.optimizer),
            jnp.asarray(step, jnp.uint32),
        )
        self.state = replicate(self.mesh, state)

    def fit(
        self,
        data: DataSet,
        run: RunFolder,
        start: Start,
        progress: Progress,
        interruption: Interruption | None,
    ) -> None:
        """Train from `start` on."""
        config, train, devices = self.config, data.splits["train"], self.mesh.size
        if config.loss == "keras-binary":
            progress.warn(_KERAS_BINARY_WARNING)
        feed = Feed(
            train=lambda epoch, first: training_batches(
                config, self.chain, train, epoch, devices, first
            ),
            validation=lambda: plain_batches(config, data.splits["validation"], devices),
            steps=steps_per_epoch(config, train),
        )
        limits = Limits(
            epochs=config.epochs,
            early_stop=config.early_stop,
            checkpoint_seconds=60 * config.checkpoint_minutes,
            interruption=interruption or Interruption(),
        )
        with limits.interruption.listening() if interruption else nullcontext():
            fit(
                self.steps,
                self.state,
                self.frozen,
                feed,
                run,
                mesh=self.mesh,
                limits=limits,
                learning_rate=config.learning_rate,
                start=start,
                progress=progress,
            )


def _with_options(
    run: RunFolder, config: ResolvedConfig, options: Mapping[str, Any]
) -> ResolvedConfig:
    """Return a run's configuration with the new `epochs`; refuse other differences."""
    given = {name: value for name, value in options.items() if value is not None}
    if "data" in given:
        given["data"] = absolute_data(given["data"])
    wanted = ResolvedConfig.from_values({**config.as_toml_values(), **given})
    wanted = as_used(as_written(wanted), run.path, run.read_record().plugins, training=True)
    for name in sorted(given.keys() - _MAY_CHANGE_ON_RESUME):
        old, new = getattr(config, name), getattr(wanted, name)
        if old != new:
            raise ConfigError(
                f"--{name.replace('_', '-')} {new!r} differs from the run's {old!r} and would"
                " change the result. Leave it out, or train a new run."
            )
    return dataclasses.replace(
        config, epochs=wanted.epochs, checkpoint_minutes=wanted.checkpoint_minutes
    )
