"""The arrays of a training's state, by path, as checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vgg_jax.errors import RunError, TrainingDiverged

if TYPE_CHECKING:  # it brings Optax, which a prediction does without
    from vgg_jax.training.steps import TrainState


def leaves_by_path(tree: Any) -> dict[str, jax.Array]:
    """Flatten a tree into {path: leaf}."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def fill_leaves(tree: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    """Return a tree of the structure of `tree` with the leaves that `leaves_by_path` would give.

    Raises:
        RunError: If the paths or shapes differ.
    """
    expected = {path: np.shape(leaf) for path, leaf in leaves_by_path(tree).items()}
    given = {path: np.shape(leaf) for path, leaf in leaves.items()}
    if expected != given:
        different = sorted(
            path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path)
        )
        raise RunError(
            "The checkpoint does not fit this configuration; these differ:"
            f" {', '.join(different[:3])}."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[jax.tree_util.keystr(path)], tree
    )


def arrays_of(state: TrainState) -> dict[str, dict[str, np.ndarray]]:
    """Copy what a step changes, because the next step takes over the buffers.

    Returns:
        Trained parameters and leaves of the optimizer's state, by path.

    Raises:
        TrainingDiverged: If a value is not finite.
    """
    arrays = {
        "trained": {path: np.array(value) for path, value in state.trained.items()},
        "optimizer": {
            path: np.array(value) for path, value in leaves_by_path(state.optimizer).items()
        },
    }
    for item, held in arrays.items():
        for path, value in held.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise TrainingDiverged(
                    f"The {item} array {path!r} is no longer finite after step {int(state.step)},"
                    " so it is not saved. The usual cause is a learning rate that is too large: try"
                    " a tenth of it, from the checkpoint before."
                )
    return arrays
