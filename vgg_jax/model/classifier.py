"""A backbone and a head, cut at the boundary into a frozen prefix and a trained suffix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vgg_jax.errors import PluginError, VggJaxError, cause_of
from vgg_jax.layers import HEAD
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugin_choices import PluginChoice
from vgg_jax.plugins import build, find_plugin

Parameters = dict[str, jax.Array]  # {path: array}; paths as in `vgg_jax.model.freezing`


class Classifier(nnx.Module):
    """A backbone and a head.

    Attributes:
        backbone: VGG16 without its top.
        head: Maps the backbone's features `[B, h, w, c]` to logits `[B, K]`.
        boundary: First trained layer, or `head`.
        head_name: The head's kind, name and origin, for messages.
    """

    def __init__(
        self, backbone: VGG16, head: nnx.Module, boundary: str, head_name: str = "The head"
    ) -> None:
        """Join a backbone and a head."""
        self.backbone = backbone
        self.head = head
        self.boundary = boundary
        self.head_name = head_name

    @property
    def prefix_stop(self) -> str | None:
        """First layer that is not in the prefix; None if all are."""
        return None if self.boundary == HEAD else self.boundary

    def prefix(self, images: jax.Array) -> jax.Array:
        """Map RGB `[B, H, W, 3]`, uint8 or float32 in [0, 1], to the features at the boundary."""
        return self.backbone.run(self.backbone.normalise(images), stop=self.prefix_stop)

    @property
    def pools(self) -> bool:
        """Whether `pool` does anything: the boundary is the head, which has a method of that name.

        Not an attribute, which may be a module with parameters.
        """
        return self.boundary == HEAD and callable(getattr(type(self.head), "pool", None))

    def pool(self, features: jax.Array) -> jax.Array:
        """Map the features at the boundary to what `suffix` takes, by no parameters.

        Raises:
            PluginError: If the head fails; names it and the cause.
        """
        if not self.pools:
            return features
        return self._ask_head(self.head.pool, features)  # pyright: ignore[reportAttributeAccessIssue]

    def suffix(self, features: jax.Array) -> jax.Array:
        """Map what `pool` gave to logits `[B, K]`; errors as for `classify`."""
        if self.boundary != HEAD:
            return self.classify(self.backbone.run(features, start=self.boundary))
        if not self.pools:
            return self.classify(features)
        head = nnx.clone(self.head)
        head.pool = _same  # a head calls its own `pool`, which has been done  # pyright: ignore
        return self._ask_head(head, features)

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the backbone's features `[B, h, w, c]` to logits `[B, K]`.

        Raises:
            PluginError: If the head fails; names it and the cause.
        """
        # Heads are float32, whatever the layers before them compute in.
        return self._ask_head(self.head, features.astype(jnp.float32))

    def _ask_head(self, ask: Any, features: jax.Array) -> jax.Array:
        try:
            return ask(features)
        except VggJaxError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.head_name} failed on features {features.shape}: {cause_of(error)}"
            ) from error

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map RGB `[B, H, W, 3]`, uint8 or float32 in [0, 1], to logits `[B, K]`."""
        features = self.prefix(images)
        if self.boundary != HEAD:
            features = self.backbone.run(features, start=self.boundary)
        return self.classify(features)


def _same(features: jax.Array) -> jax.Array:
    return features


@dataclasses.dataclass(frozen=True)
class Functional:
    """A classifier as pure functions of its parameters.

    Attributes:
        training: Graph of the module with dropout on.
        inference: Graph of the module with dropout off.
        variables: The parameters' variables by path, abstract.
        randomness: State of dropout's generators, abstract.
        pools: Whether the classifier's `pool` does anything.
    """

    training: nnx.GraphDef
    inference: nnx.GraphDef
    variables: nnx.State
    randomness: nnx.State
    pools: bool

    def bind(self, parameters: Mapping[str, jax.Array], key: jax.Array | None = None) -> Classifier:
        """Return the classifier with these parameters; with a key it is in training mode.

        Parameters that are left out stay abstract: parts of the network that have them cannot be
        applied.
        """

        def with_value(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
            name = path_name(path)
            return variable.replace(parameters[name]) if name in parameters else variable

        variables = nnx.map_state(with_value, self.variables)
        if key is None:
            return nnx.merge(self.inference, variables, _reseed(self.randomness, jax.random.key(0)))
        return nnx.merge(self.training, variables, _reseed(self.randomness, key))


def make_functional(classifier: Classifier) -> tuple[Functional, Parameters]:
    """Split a classifier, which is then in training mode, into pure functions and its parameters.

    Raises:
        PluginError: If the head holds variables other than `nnx.Param` and dropout's generator.
    """
    _, variables, randomness, others = nnx.split(classifier, nnx.Param, nnx.RngState, ...)
    for path, variable in nnx.to_flat_state(others):
        raise PluginError(
            f"{classifier.head_name} holds a {type(variable).__name__} at"
            f" {path_name(path)!r}; a head may hold nnx.Param and dropout's generator only."
        )
    parameters = {
        path_name(path): value.get_value() for path, value in nnx.to_flat_state(variables)
    }
    variables, randomness = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (variables, randomness)
    )
    classifier.eval()
    inference = nnx.graphdef(classifier)
    classifier.train()
    functional = Functional(
        training=nnx.graphdef(classifier),
        inference=inference,
        variables=variables,
        randomness=randomness,
        pools=classifier.pools,
    )
    return functional, parameters


def build_classifier(
    backbone: VGG16,
    head: PluginChoice,
    *,
    num_classes: int,
    image_size: int,
    boundary: str,
    seed: int,
) -> Classifier:
    """Build a head for `backbone` and join them.

    Raises:
        PluginError: If the head does not map the features to logits `[B, num_classes]`.
        OptionError: If the head refuses an option.
    """
    shape = backbone.output_shape(image_size)
    name = find_plugin("head", head.ref).described
    module = build("head", head, shape, num_classes, rngs=nnx.Rngs(seed))
    if not isinstance(module, nnx.Module):
        raise PluginError(f"{name} built a {type(module).__name__}, not a flax.nnx.Module.")
    classifier = Classifier(backbone, module, boundary, name)
    classifier.train()  # where dropout, say, may fail that does nothing otherwise
    features = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits = nnx.eval_shape(lambda joined, x: joined.classify(x), classifier, features)
    if getattr(logits, "shape", None) != (2, num_classes):
        raise PluginError(
            f"{name} maps features {(2, *shape)} to {getattr(logits, 'shape', logits)!r}, but must"
            f" give logits {(2, num_classes)}."
        )
    return classifier


def path_name(path: tuple[Any, ...]) -> str:
    """Join a variable's path into the form `backbone/conv5_1/kernel`."""
    return "/".join(map(str, path))


def _reseed(randomness: nnx.State, key: jax.Array) -> nnx.State:
    """Give each generator its own stream of `key`, its counter at zero."""
    numbers = {path: i for i, (path, _) in enumerate(nnx.to_flat_state(randomness))}

    def reseeded(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        if isinstance(variable, nnx.RngCount):
            return variable.replace(jnp.zeros((), jnp.uint32))
        return variable.replace(jax.random.fold_in(key, numbers[path]))

    return nnx.map_state(reseeded, randomness)
