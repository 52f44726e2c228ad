"""The compiled steps, pure functions of parameters, optimizer state and a batch, on a mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vgg_jax.config import FeaturesDtype, LossName, Precision, ResolvedConfig
from vgg_jax.model.arithmetic import set_arithmetic
from vgg_jax.model.classifier import Functional, Parameters
from vgg_jax.model.pieces import map_in_pieces, run_piece
from vgg_jax.training.inputs import Inputs, fold_batches, map_batches
from vgg_jax.training.losses import example_losses, probabilities
from vgg_jax.training.position import Sums

Batch = Mapping[
    str, jax.Array
]  # images, labels, valid, content, as in `vgg_jax.data.pipeline.Batch`
_AUGMENTATION, _DROPOUT, _MIXING = 1, 2, 3  # keep the draws of one seed apart


class ImageTransform(Protocol):
    """What a chain of augmentations does on the device."""

    @property
    def mixes(self) -> bool:
        """Whether `mix` does anything."""
        ...

    def apply(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Map images `[B, H, W, 3]`, one key each, to float32 ones in [0, 1]."""
        ...

    def mix(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Map what `apply` gave, and targets `[B, K]`, to new ones."""
        ...


class Hyperparameters(NamedTuple):
    """Numbers of a step that are data, so that one program serves all their values; float32.

    Attributes:
        learning_rate: Factor of every update.
        weight_decay: As for `vgg_jax.training.optim.make_optimizer`.
        label_smoothing: Of the training loss; evaluation has none.
    """

    learning_rate: jax.Array
    weight_decay: jax.Array
    label_smoothing: jax.Array

    @classmethod
    def of(cls, config: ResolvedConfig) -> Hyperparameters:
        """Return those of a training."""
        return cls(*(jnp.asarray(getattr(config, name), jnp.float32) for name in cls._fields))


class TrainState(NamedTuple):
    """What a step takes over and hands on; it changes all but the hyperparameters.

    Attributes:
        trained: Parameters.
        optimizer: Its state.
        step: Steps taken, uint32.
        hyperparameters: Of the next step.
    """

    trained: Parameters
    optimizer: optax.OptState
    step: jax.Array
    hyperparameters: Hyperparameters


class Totals(NamedTuple):
    """Sums over the steps of an epoch so far, on the device; the first four are `Sums`.

    `failed_step` is the first step whose loss or gradient was not finite, 0 if there was none, and
    `failed_loss` its loss.
    """

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array
    skipped: jax.Array
    failed_step: jax.Array
    failed_loss: jax.Array

    @classmethod
    def start(cls, sums: Sums | None = None) -> Totals:
        """Return totals that go on from `sums`, or over no steps."""
        sums = sums or Sums()
        correct, examples, skipped = (
            jnp.asarray(n, jnp.int32) for n in (sums.correct, sums.examples, sums.skipped)
        )
        loss = jnp.asarray(sums.loss, jnp.float32)
        failed_step, failed_loss = jnp.zeros((), jnp.uint32), jnp.zeros(())
        return cls(loss, correct, examples, skipped, failed_step, failed_loss)

    def fetch(self) -> Sums:
        """Wait for the steps, and return their sums."""
        loss, correct, examples, skipped = (np.asarray(value).item() for value in self[:4])
        return Sums(loss, correct, examples, skipped)


@dataclasses.dataclass(frozen=True, eq=False)  # compiled once for each instance
class Steps:
    """The compiled programs of one training, each compiled at its first call.

    A batch goes through a program of the prefix, then through `train` or `evaluate`. They are apart
    so that features which were kept give the same bits as those computed on the spot.

    Attributes:
        functional: The classifier as pure functions.
        tx: Gives the optimizer of the trained parameters; the numbers are traced.
        loss: Name of the loss.
        augment: Applied to training images, or None.
        seed: Of augmentation and dropout.
        precision: Of the convolutions, see `vgg_jax.model.arithmetic`.
        features_dtype: To which features are rounded.
        num_classes: Needed only where `augment` mixes.
        most_batches: Of a chunk, see `vgg_jax.training.chunks`; with 1 there are no chunks.
        on_one_cpu: Whether to work as suits a CPU: the prefix takes few images at a time, see
            `vgg_jax.model.pieces`, and convolutions fewer multiplications.
    """

    functional: Functional
    tx: Callable[[Hyperparameters], optax.GradientTransformation]
    loss: LossName
    augment: ImageTransform | None = None
    seed: int = 0
    precision: Precision = "float32"
    features_dtype: FeaturesDtype = "float32"
    num_classes: int = 0
    most_batches: int = 1
    on_one_cpu: bool = False

    @partial(jax.jit, static_argnums=0)
    def features(self, frozen: Parameters, images: jax.Array) -> jax.Array:
        """Map images `[B, H, W, 3]` to the features `[B, h, w, c]` at the boundary."""
        return self._prefix(frozen, images)

    @partial(jax.jit, static_argnums=0)
    def augmented_features(
        self, frozen: Parameters, images: jax.Array, content: jax.Array, view: jax.Array
    ) -> jax.Array:
        """Do what `features` does to a view of each image, drawn for its `content` `[B, 3]`."""
        return self._prefix(frozen, self._augmented(images, content, view))

    @partial(jax.jit, static_argnums=0)
    def mixed_features(
        self, frozen: Parameters, batch: Batch, view: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Do what `augmented_features` does, then mix pictures, as drawn for a step.

        Returns:
            Features, and the share of each class, float32 `[B, K]`.
        """
        images = self._augmented(batch["images"], batch["content"], view)
        targets = jax.nn.one_hot(batch["labels"], self.num_classes)
        if self.augment is not None:
            key = mixing_key(self.seed, step)
            images, targets = self.augment.mix(key, images, targets, batch["valid"])
        return self._prefix(frozen, images), targets

    def chunk_size(self, examples: int, batch_size: int) -> int:
        """Return how many batches the chunks of a split have: 1 where there are no chunks."""
        batches = math.ceil(examples / batch_size)
        return math.ceil(batches / math.ceil(batches / self.most_batches))

    def pool(self, features: jax.Array) -> jax.Array:
        """Map features to what `train` and `evaluate` take; see `Classifier.pool`."""
        return self._pool(features) if self.functional.pools else features

    @partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def train(self, state: TrainState, totals: Totals, inputs: Inputs) -> tuple[TrainState, Totals]:
        """Do what `step` does, for each batch of a chunk in turn.

        Takes over the memory of `state` and `totals`.
        """
        return fold_batches(lambda carry, batch: self.step(*carry, batch), (state, totals), inputs)

    def step(self, state: TrainState, totals: Totals, inputs: Inputs) -> tuple[TrainState, Totals]:
        """Take one optimizer step on a batch; returns the new state and the running sums.

        A step whose loss or gradient is not finite changes nothing but the totals. Of an example
        that was mixed, the class with the largest share counts as the right one.
        """
        features, targets, valid = inputs
        key = jax.random.fold_in(_stream(self.seed, _DROPOUT), state.step)
        count = jnp.maximum(valid.sum(), 1)

        def mean_loss(trained: Parameters) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = self._suffix(trained, features, key)
            smoothing = state.hyperparameters.label_smoothing
            losses = example_losses(self.loss, logits, targets, smoothing)
            loss_sum = jnp.where(valid, losses, 0).sum()
            return loss_sum / count, (loss_sum, logits)

        gradients, (loss_sum, logits) = jax.grad(mean_loss, has_aux=True)(state.trained)
        tx = self.tx(state.hyperparameters)
        updates, optimizer = tx.update(gradients, state.optimizer, state.trained)
        trained = cast("Parameters", optax.apply_updates(state.trained, updates))
        finite = jnp.isfinite(loss_sum) & jnp.isfinite(optax.tree.norm(gradients, squared=True))
        trained, optimizer = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (trained, optimizer),
            (state.trained, state.optimizer),
        )
        wanted = targets.argmax(-1) if targets.ndim == 2 else targets
        correct = (valid & (logits.argmax(-1) == wanted)).sum()
        step = state.step + 1
        first_failure = ~finite & (totals.failed_step == 0)
        totals = Totals(
            totals.loss + jnp.where(finite, loss_sum, 0),
            totals.correct + jnp.where(finite, correct, 0),
            totals.examples + jnp.where(finite, valid.sum(), 0),
            totals.skipped + ~finite,
            jnp.where(first_failure, step, totals.failed_step),
            jnp.where(first_failure, loss_sum / count, totals.failed_loss),
        )
        return TrainState(trained, optimizer, step, state.hyperparameters), totals

    @partial(jax.jit, static_argnums=0)
    def evaluate(self, trained: Parameters, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """Return the loss `[B]` and the probabilities `[B, K]`, nothing random involved.

        Of a chunk both have its axis of batches, too.
        """
        if inputs.is_chunk:
            return map_batches(partial(self.evaluate, trained), inputs)
        logits = self._suffix(trained, inputs.features)
        losses = example_losses(self.loss, logits, inputs.targets)
        return losses, probabilities(self.loss, logits)

    @partial(jax.jit, static_argnums=0)
    def _pool(self, features: jax.Array) -> jax.Array:
        return self.functional.bind({}).pool(features)

    def _augmented(self, images: jax.Array, content: jax.Array, view: jax.Array) -> jax.Array:
        if self.augment is None:
            return images
        return self.augment.apply(example_keys(self.seed, view, content), images)

    def _prefix(self, frozen: Parameters, images: jax.Array) -> jax.Array:
        classifier = self.functional.bind(frozen)
        backbone, precision, stop = classifier.backbone, self.precision, classifier.prefix_stop
        set_arithmetic(backbone, precision, on_one_cpu=self.on_one_cpu, gradient=False)
        if not self.on_one_cpu:
            return classifier.prefix(images).astype(self.features_dtype)

        def prefix(few: jax.Array) -> jax.Array:
            return run_piece(backbone, few, precision, stop).astype(self.features_dtype)

        return map_in_pieces(prefix, images)

    def _suffix(
        self, trained: Parameters, features: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        classifier = self.functional.bind(trained, key)
        # In validation, too, which then agrees with the steps of training.
        set_arithmetic(
            classifier.backbone, self.precision, on_one_cpu=self.on_one_cpu, gradient=True
        )
        return classifier.suffix(features.astype(jnp.float32))


def _stream(seed: int, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), number)


def mixing_key(seed: int, step: jax.Array) -> jax.Array:
    """Derive the random key of the batch augmentations of a step."""
    return jax.random.fold_in(_stream(seed, _MIXING), step)


def example_keys(seed: int, epoch: jax.Array, content: jax.Array) -> jax.Array:
    """Derive a random key `[B]` for each example from its content, uint32 `[B, 3]`."""
    base = jax.random.fold_in(_stream(seed, _AUGMENTATION), epoch)

    def one(words: jax.Array) -> jax.Array:
        key = base
        for i in range(words.shape[0]):
            key = jax.random.fold_in(key, words[i])
        return key

    return jax.vmap(one)(content)


def data_mesh() -> jax.sharding.Mesh:
    """Return a mesh of one axis, `data`, over all devices."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def put_batch(mesh: jax.sharding.Mesh, batch: Any) -> Any:
    """Transfer a batch, a tree of arrays, their rows spread over the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def replicate(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Copy a tree to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
