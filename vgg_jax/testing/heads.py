"""Rules for heads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from vgg_jax.model.classifier import Classifier, Functional, Parameters, make_functional
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugins import KEYWORDS
from vgg_jax.testing.options import look_at_options
from vgg_jax.testing.report import Examination, Report

_SHAPES = ((7, 7, 64), (3, 4, 64))
_CLASSES, _ROWS = 3, 4
_TOLERANCE = 1e-5
_PREFIX = "head/"


def check_head(head: Any, **options: Any) -> None:
    """Check a head against the contract.

    Args:
        head: Its class or function.
        **options: To build it with.

    Raises:
        PluginContractError: If it breaks rules; the text names each.
    """
    examine_head(head, **options).raise_for_failures()


def examine_head(factory: Any, **options: Any) -> Report:
    """Do what `check_head` does, and return what was found instead of raising."""
    examination = Examination()
    for shape in _SHAPES:
        _look_at(examination, factory, shape, options)
    if not examination.failed("can-be-built"):

        def build(**given: Any) -> Any:
            return _build(factory, _SHAPES[0], {**options, **given})

        look_at_options(examination, factory, KEYWORDS["head"], 2, build)
    return examination.report(getattr(factory, "__name__", repr(factory)))


def _build(
    factory: Any, shape: tuple[int, int, int], options: dict[str, Any], seed: int = 0
) -> nnx.Module:
    module = factory(shape, _CLASSES, rngs=nnx.Rngs(seed), **options)
    if not isinstance(module, nnx.Module):
        raise TypeError(f"it builds a {type(module).__name__}, not a flax.nnx.Module")
    return module


def _look_at(
    examination: Examination, factory: Any, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    backbone = VGG16.random(1 / 16, seed=0)
    built: list[tuple[Functional, Parameters]] = []

    def functional(seed: int = 0) -> tuple[Functional, Parameters]:
        head = _build(factory, shape, options, seed)
        found, parameters = make_functional(Classifier(backbone, head, "head"))
        return found, {p: value for p, value in parameters.items() if p.startswith(_PREFIX)}

    def can_be_built() -> str | None:
        built.append(functional())
        return None

    examination.look("can-be-built", can_be_built)
    if examination.failed("can-be-built"):
        return
    graph, parameters = built[0]
    rest = make_functional(Classifier(backbone, _build(factory, shape, options), "head"))[1]
    features = jnp.asarray(np.random.default_rng(1).uniform(0, 2, (_ROWS, *shape)), jnp.float32)

    def logits(values: Parameters, x: jax.Array = features, key: Any = None) -> jax.Array:
        return graph.bind({**rest, **values}, key).classify(x)

    def again(values: Parameters) -> jax.Array:
        """Do what `logits` does with a head that is built anew, as when a run is loaded."""
        return functional()[0].bind({**rest, **values}).classify(features)

    examination.look(
        "randomness-only-in-training",
        lambda: _differs(logits(parameters), logits(parameters), 0.0),
    )
    if examination.failed("randomness-only-in-training"):
        return
    examination.look("logits-of-each-picture", lambda: _logits_fault(logits, parameters, features))
    if examination.failed("logits-of-each-picture"):
        return
    key = jax.random.key(5)
    if graph.pools:
        examination.look(
            "pools-first", lambda: _pool_fault(graph, {**rest, **parameters}, features)
        )
    else:
        examination.skip("pools-first", "it has no method pool")
    examination.look("finite-gradient", lambda: _gradient_fault(logits, parameters))
    examination.look(
        "jit-equals-eager", lambda: _differs(jax.jit(logits)(parameters), logits(parameters))
    )
    examination.look(
        "same-key-same-output",
        lambda: _differs(logits(parameters, features, key), logits(parameters, features, key), 0.0),
    )
    examination.look("no-recompilation", lambda: _recompilation_fault(logits, parameters))
    examination.look("seeded-parameters", lambda: _seed_fault(functional, parameters))
    examination.look("stable-parameter-names", lambda: _names_fault(functional, parameters))
    examination.look("checkpoint-round-trip", lambda: _round_trip_fault(logits, again, parameters))


def _logits_fault(
    logits: Callable[..., jax.Array], parameters: Parameters, features: jax.Array
) -> str | None:
    found = logits(parameters)
    if found.shape != (_ROWS, _CLASSES) or found.dtype != jnp.float32:
        return f"{found.dtype} {found.shape}, not float32 {(_ROWS, _CLASSES)}"
    for training in (None, jax.random.key(3)):
        together = logits(parameters, features, training)
        for row in (0, _ROWS - 1):
            others = np.arange(_ROWS) != row
            changed = np.where(others[:, None, None, None], features, 3 * features)
            apart = logits(parameters, jnp.asarray(changed), training)
            seen = _differs(np.asarray(apart)[others], np.asarray(together)[others])
            if seen:
                return f"picture {row} of the batch changes the logits of others: {seen}"
    backwards = logits(parameters, jnp.asarray(np.asarray(features)[::-1]))
    seen = _differs(np.asarray(backwards)[::-1], logits(parameters))
    if seen:
        return f"the place in the batch changes the logits: {seen}"
    return None


def _pool_fault(graph: Functional, parameters: Parameters, features: jax.Array) -> str | None:
    """Compare a head that is given what its `pool` made, without parameters, with the whole one."""
    pooled = graph.bind({}).pool(features)
    for key in (None, jax.random.key(3)):
        whole = graph.bind(parameters, key).classify(features)
        seen = _differs(graph.bind(parameters, key).suffix(pooled), whole)
        if seen:
            return f"given what pool returns, its logits are others: {seen}"
    return None


def _gradient_fault(logits: Callable[..., jax.Array], parameters: Parameters) -> str | None:
    def loss(values: Parameters) -> jax.Array:
        labels = jnp.arange(_ROWS) % _CLASSES
        return optax.softmax_cross_entropy_with_integer_labels(logits(values), labels).mean()

    gradient = jax.jit(jax.grad(loss))  # one program, as in training, not one an operation
    gradients = gradient(parameters)
    broken = [path for path, value in gradients.items() if not np.isfinite(value).all()]
    if broken:
        return f"not finite for {', '.join(broken)}"
    # A layer that starts with zeros holds back the gradients of those before it, for one step.
    rng = np.random.default_rng(7)
    moved = {
        path: jnp.asarray(value + 0.05 * rng.standard_normal(value.shape), value.dtype)
        for path, value in parameters.items()
    }
    gradients = gradient(moved)
    idle = [path for path, value in gradients.items() if not np.asarray(value).any()]
    return f"zero everywhere for {', '.join(idle)}" if idle else None


def _recompilation_fault(logits: Callable[..., jax.Array], parameters: Parameters) -> str | None:
    traced = 0

    def traced_logits(values: Parameters, key: jax.Array) -> jax.Array:
        nonlocal traced
        traced += 1
        return logits(values, key=key)

    compiled = jax.jit(traced_logits)
    for seed in range(3):
        compiled.eval_shape(parameters, jax.random.key(seed))  # which traces as a call does
    return None if traced == 1 else f"three calls traced it {traced} times"


def _seed_fault(
    functional: Callable[[int], tuple[Functional, Parameters]], parameters: Parameters
) -> str | None:
    same, other = functional(0)[1], functional(1)[1]
    changed = [p for p in parameters if not np.array_equal(parameters[p], same[p])]
    if changed:
        return f"the same rngs draw other values of {', '.join(changed)}"
    # Zeros and ones may be the same for every seed.
    drawn = [p for p, value in parameters.items() if np.ptp(value) > 0]
    alike = all(np.array_equal(parameters[p], other[p]) for p in drawn)
    return "other rngs draw the same values" if alike and drawn else None


def _names_fault(
    functional: Callable[[int], tuple[Functional, Parameters]], parameters: Parameters
) -> str | None:
    again = functional(0)[1]
    first = {path: value.shape for path, value in parameters.items()}
    second = {path: value.shape for path, value in again.items()}
    different = sorted(set(first.items()) ^ set(second.items()))
    return f"they differ in {', '.join(path for path, _ in different)}" if different else None


def _round_trip_fault(
    logits: Callable[..., jax.Array],
    again: Callable[[Parameters], jax.Array],
    parameters: Parameters,
) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parameters"
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, {p: np.asarray(value) for p, value in parameters.items()})
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(path)
    return _differs(
        again({p: jnp.asarray(value) for p, value in restored.items()}), logits(parameters), 0.0
    )


def _differs(found: Any, wanted: Any, tolerance: float = _TOLERANCE) -> str | None:
    found, wanted = np.asarray(found), np.asarray(wanted)
    largest = float(np.abs(found - wanted).max())
    scale = max(1.0, float(np.abs(wanted).max()))
    return None if largest <= tolerance * scale else f"they differ by {largest:.2g}"
