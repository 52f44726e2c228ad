"""Training: from a configuration to a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.augment.chain import Chain, build_chain
from vgg_jax.cache import cache_folder
from vgg_jax.config import DEMO, TrainConfig
from vgg_jax.data.examples import DataSet, Examples, Split
from vgg_jax.data.pipeline import batches, epoch_order
from vgg_jax.data.sources import open_data
from vgg_jax.demo.pictures import VERSION, ensure_demo_data
from vgg_jax.errors import ConfigError, DataError, RunError
from vgg_jax.model.freezing import label_parameters, split_parameters, train_only
from vgg_jax.plugins import parse_choice
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.checkpoints import EarlyStopping, fill_leaves
from vgg_jax.training.loop import Feed, fit
from vgg_jax.training.metrics import Evaluation
from vgg_jax.training.optim import make_optimizer
from vgg_jax.training.run_folder import RunFolder, free_run_path, new_record
from vgg_jax.training.steps import Steps, TrainState, data_mesh, replicate
from vgg_jax.workflows.load import build_functional, checked, open_backbone, rebuild

_MAY_CHANGE_ON_RESUME = frozenset({"epochs", "run"})


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
        from vgg_jax.workflows.evaluate import evaluate

        return evaluate(self.path, data=data, split=split)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "run": str(self.path),
            "epochs": [dataclasses.asdict(metrics) for metrics in self.history],
            "best": dataclasses.asdict(self.best),
        }


def train(*, resume: bool = False, progress: Progress | None = None, **options: Any) -> Run:
    """Train a classifier.

    Args:
        resume: Go on with the run in the folder `run`; other options then only confirm what the run
            has, but `epochs` may be another number.
        progress: Receives what happens; silent by default.
        **options: The fields of `vgg_jax.config.TrainConfig`, all optional.

    Raises:
        VggJaxError: If an option, the data, the weights or the run folder cannot be used.
    """
    if resume:
        return resume_training(options, progress or Progress())
    return run_training(TrainConfig.from_values(options), progress or Progress())


def run_training(config: TrainConfig, progress: Progress) -> Run:
    """Train a classifier from the start; errors as for `train`."""
    config = config.resolved()
    run = RunFolder(Path(config.run) if config.run else free_run_path(config))
    run.refuse_existing()
    chain = build_chain(
        [parse_choice(text) for text in config.augment],
        fill=config.fill,
        fill_value=config.fill_value,
    )
    data = open_splits(config, progress)
    opened = open_backbone(_require(config.weights))
    functional, parameters = build_functional(opened.backbone, config, len(data.class_names))
    config = dataclasses.replace(
        config, data=absolute_data(config.data), weights=opened.weights, run=None
    )
    record = new_record(
        config,
        class_names=data.class_names,
        weights=opened.weights,
        weights_digest=opened.digest,
        examples={name: len(examples) for name, examples in data.splits.items()},
    )
    run.create(config, record)
    session = _Session.start(config, functional, parameters, chain)
    session.fit(data, run, 1, EarlyStopping(), progress)
    return Run(run.path, run.read_metrics())


def resume_training(options: Mapping[str, Any], progress: Progress) -> Run:
    """Go on with a run after its last completed epoch; errors as for `train`.

    Raises:
        ConfigError: If an option differs from the run's and would change the result.
    """
    if not options.get("run"):
        raise ConfigError("--resume needs --run, the folder of the run to go on with.")
    run = RunFolder(Path(options["run"]))
    record, config = run.read_record(), run.read_config()
    config = _with_options(config, options)
    if not run.checkpoints.epochs():
        raise RunError(
            f"{run.path} has no completed epoch to go on from. Remove it and train again, or name"
            " another --run."
        )
    restored = run.checkpoints.restore(run.checkpoints.find("latest"), with_optimizer=True)
    history = run.cut_metrics(restored.epoch)
    if restored.epoch >= _require(config.epochs):
        progress.note(f"{run.path} is complete: {restored.epoch} epochs. More by --epochs.")
        return Run(run.path, history)
    chain = build_chain(
        [parse_choice(text) for text in config.augment],
        fill=config.fill,
        fill_value=config.fill_value,
    )
    data = open_splits(config, progress)
    if data.class_names != record.class_names:
        raise DataError(
            f"The data in {config.data} now have the classes {', '.join(data.class_names)}; the run"
            f" has {', '.join(record.class_names)}."
        )
    functional, parameters = rebuild(config, record)
    run.write_config(config)
    session = _Session.start(config, functional, parameters, chain)
    session.state = TrainState(
        replicate(session.mesh, {**checked(restored.trained, parameters)}),
        replicate(session.mesh, fill_leaves(session.state.optimizer, restored.optimizer)),
        replicate(session.mesh, jnp.asarray(restored.step, jnp.uint32)),
    )
    progress.note(f"Going on with {run.path} after epoch {restored.epoch}.")
    session.fit(data, run, restored.epoch + 1, restored.early_stopping, progress)
    return Run(run.path, run.read_metrics())


def open_splits(config: TrainConfig, progress: Progress) -> DataSet:
    """Open the data of a training and tell the user what was found.

    Raises:
        DataError: If the data cannot be used.
    """
    data = open_data(
        config.data, demo_folder=demo_folder, seed=config.seed, needed=("train", "validation")
    )
    counts = ", ".join(f"{len(examples)} {name}" for name, examples in data.splits.items())
    progress.note(f"Data: {data.name}, {len(data.class_names)} classes; {counts}.")
    for note in data.notes:
        progress.note(note)
    if config.loss == "keras-binary":
        progress.warn(
            "loss keras-binary is binary cross-entropy on the softmax, as in the old recipe. The"
            " accuracy that Keras printed for it counted every class as a yes-or-no question and"
            f" was inflated (always right about most of {len(data.class_names)} classes); the"
            " accuracy here is the share of pictures classified right."
        )
    return data


def demo_folder() -> Path:
    """Draw the demo's pictures into the user's cache unless they are there; returns the folder."""
    return ensure_demo_data(cache_folder() / "data" / f"demo-v{VERSION}")


@dataclasses.dataclass
class _Session:
    """All that one call of `fit` needs, on the devices."""

    config: TrainConfig
    steps: Steps
    state: TrainState
    frozen: dict[str, jax.Array]
    chain: Chain
    mesh: jax.sharding.Mesh

    @classmethod
    def start(
        cls, config: TrainConfig, functional: Any, parameters: dict[str, jax.Array], chain: Chain
    ) -> _Session:
        labels = label_parameters(parameters, config.train_from)
        trained, frozen = split_parameters(parameters, labels)
        optimizer = make_optimizer(
            config.optimizer,
            learning_rate=_require(config.learning_rate),
            weight_decay=_require(config.weight_decay),
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

    def fit(
        self,
        data: DataSet,
        run: RunFolder,
        first_epoch: int,
        stopping: EarlyStopping,
        progress: Progress,
    ) -> None:
        config, train = self.config, data.splits["train"]
        batch_size = min(config.batch_size, len(train))
        feed = Feed(
            train=lambda epoch: training_batches(config, self.chain, train, epoch, self.mesh.size),
            validation=lambda: plain_batches(config, data.splits["validation"], self.mesh.size),
            steps=-(-len(train) // batch_size),
        )
        fit(
            self.steps,
            self.state,
            self.frozen,
            feed,
            run,
            mesh=self.mesh,
            epochs=_require(config.epochs),
            learning_rate=_require(config.learning_rate),
            first_epoch=first_epoch,
            early_stop=config.early_stop,
            early_stopping=stopping,
            progress=progress,
        )


def training_batches(
    config: TrainConfig, chain: Chain, examples: Examples, epoch: int, devices: int
) -> Iterator[Any]:
    """Return the batches of a training epoch, in its order, padded to a multiple of the devices."""
    batch_size = min(config.batch_size, len(examples))
    return batches(
        examples,
        batch_size=batch_size,
        image_size=_require(config.image_size),
        interpolation=config.interpolation,
        order=epoch_order(len(examples), config.seed, epoch),
        host=chain.host,
        host_seed=(config.seed, epoch),
        pad_to=-(-batch_size // devices) * devices,
    )


def plain_batches(config: TrainConfig, examples: Examples, devices: int) -> Iterator[Any]:
    """Return the batches of an evaluation: every example once, in order, nothing random."""
    batch_size = min(config.batch_size, len(examples))
    return batches(
        examples,
        batch_size=batch_size,
        image_size=_require(config.image_size),
        interpolation=config.interpolation,
        pad_to=-(-batch_size // devices) * devices,
    )


def _with_options(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """Return a run's configuration with the new `epochs`; refuse other differences."""
    given = {name: value for name, value in options.items() if value is not None}
    wanted = TrainConfig.from_values({**config.as_toml_values(), **given})
    for name in given.keys() - _MAY_CHANGE_ON_RESUME:
        old, new = getattr(config, name), getattr(wanted, name)
        if name == "data":
            new = absolute_data(new)
        if name == "weights":
            continue  # compared by digest
        if old != new:
            raise ConfigError(
                f"--{name.replace('_', '-')} {new!r} differs from the run's {old!r} and would"
                " change the result. Leave it out, or train a new run."
            )
    return dataclasses.replace(config, epochs=wanted.epochs)


def absolute_data(data: str) -> str:
    """Return DATA as it can be used from any folder."""
    return data if data == DEMO or data.startswith("tfds:") else str(Path(data).resolve())


def _require(value: Any) -> Any:
    """Return a value that `TrainConfig.resolved` has filled in."""
    if value is None:
        raise ConfigError("The configuration is not complete; the run's config.toml was changed.")
    return value
