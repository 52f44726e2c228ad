"""One session of a training: the state on the devices, from the first step or from a checkpoint."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import optax

from vgg_jax.augment.chain import Chain, build_chain
from vgg_jax.config import ResolvedConfig
from vgg_jax.model.arithmetic import gains_from_bfloat16
from vgg_jax.model.classifier import Functional, Parameters
from vgg_jax.model.freezing import Label, label_parameters, split_parameters, train_only
from vgg_jax.model.pieces import on_one_cpu
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Restored
from vgg_jax.training.chunks import most_batches
from vgg_jax.training.epoch import Feed, Limits
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.loop import fit
from vgg_jax.training.optim import make_optimizer
from vgg_jax.training.position import Position
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.state_arrays import fill_leaves
from vgg_jax.training.steps import Hyperparameters, Steps, TrainState, data_mesh, replicate
from vgg_jax.workflows.feed import Source
from vgg_jax.workflows.load import checked

_KERAS_BINARY_WARNING = (
    "loss keras-binary is binary cross-entropy on the softmax, as in the old recipe. The accuracy"
    " that Keras printed for it took every class for a yes-or-no question and was inflated; the"
    " accuracy here is the share of pictures classified right."
)
_NO_BFLOAT16_WARNING = (
    "--precision bfloat16 rounds what is multiplied, but gains no time here: among CPUs it takes"
    " one with AMX (Intel's newer Xeons), as one device."
)


def chain_of(config: ResolvedConfig) -> Chain:
    """Build the chain of a configuration's augmentations; errors as for `build_chain`."""
    choices = [parse_choice(text) for text in config.augment]
    return build_chain(choices, fill=config.fill, fill_value=config.fill_value)


def warn_of_options(config: ResolvedConfig, progress: Progress) -> None:
    """Warn of options of which a training gives something else than is easily expected."""
    if config.loss == "keras-binary":
        progress.warn(_KERAS_BINARY_WARNING)
    if config.precision == "bfloat16" and not gains_from_bfloat16():
        progress.warn(_NO_BFLOAT16_WARNING)


def limits_of(config: ResolvedConfig, interruption: Interruption | None) -> Limits:
    """Return when a training saves and when it ends."""
    return Limits(
        epochs=config.epochs,
        early_stop=config.early_stop,
        checkpoint_seconds=60 * config.checkpoint_minutes,
        on_nan=config.on_nan,
        interruption=interruption or Interruption(),
    )


@dataclasses.dataclass
class Session:
    """All that one call of `fit` needs, on the devices."""

    config: ResolvedConfig
    steps: Steps
    state: TrainState
    frozen: dict[str, jax.Array]
    chain: Chain
    mesh: jax.sharding.Mesh

    @classmethod
    def start(
        cls,
        config: ResolvedConfig,
        functional: Functional,
        parameters: Parameters,
        chain: Chain,
        num_classes: int,
        steps: Steps | None = None,
    ) -> Session:
        """Prepare the first step, from `parameters`.

        Takes `steps` from another training that differs in numbers alone; see `Hyperparameters`.
        """
        labels = label_parameters(parameters, config.train_from)
        trained, frozen = split_parameters(parameters, labels)
        of_trained: dict[str, Label] = {path: labels[path] for path in trained}

        def optimizer_of(hyperparameters: Hyperparameters) -> optax.GradientTransformation:
            optimizer = make_optimizer(
                config.optimizer,
                learning_rate=hyperparameters.learning_rate,
                weight_decay=hyperparameters.weight_decay,
            )
            return train_only(optimizer, of_trained)

        steps = steps or Steps(
            functional,
            optimizer_of,
            config.loss,
            augment=chain if chain.on_device else None,
            seed=config.seed,
            precision=config.precision,
            features_dtype=config.features_dtype,
            num_classes=num_classes,
            most_batches=most_batches(functional, trained, config, mixes=chain.mixes),
            on_one_cpu=on_one_cpu(),
        )
        mesh = data_mesh()
        numbers = Hyperparameters.of(config)
        optimizer = steps.tx(numbers).init(trained)
        state = TrainState(trained, optimizer, jnp.zeros((), jnp.uint32), numbers)
        return cls(config, steps, replicate(mesh, state), replicate(mesh, frozen), chain, mesh)

    def restore(self, restored: Restored, parameters: Parameters) -> None:
        """Go on from a checkpoint instead; `parameters` are those before the first step.

        Raises:
            RunError: If the checkpoint does not fit.
        """
        state = TrainState(
            checked(restored.trained, parameters),
            fill_leaves(self.state.optimizer, restored.optimizer),
            jnp.asarray(restored.position.step, jnp.uint32),
            self.state.hyperparameters,
        )
        self.state = replicate(self.mesh, state)

    def fit(
        self,
        feed: AbstractContextManager[Feed],
        run: RunFolder,
        start: Position,
        progress: Progress,
        interruption: Interruption | None,
    ) -> None:
        """Train from `start` on; errors as for `vgg_jax.training.loop.fit`.

        Args:
            feed: Gives the batches; opened once the run is known as being trained, so that what
                goes wrong is recorded there.
            run: Where it is saved.
            start: Where it stands.
            progress: Receives what happens.
            interruption: As for `vgg_jax.workflows.train.run_training`.
        """
        config = self.config
        limits = limits_of(config, interruption)
        with (
            limits.interruption.listening() if interruption else nullcontext(),
            run.training(),
            feed as batches,
        ):
            fit(
                self.steps,
                self.state,
                self.frozen,
                batches,
                run,
                mesh=self.mesh,
                limits=limits,
                learning_rate=config.learning_rate,
                start=start,
                progress=progress,
            )

    @property
    def source(self) -> Source:
        """What its features are computed with."""
        return Source(self.config, self.chain, self.steps, self.frozen, self.mesh)
