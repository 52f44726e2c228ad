"""Weight files read as the package reads them, without the proof."""

from __future__ import annotations

from pathlib import Path

from vgg_jax.weights.arrange import arrange_weights
from vgg_jax.weights.reading import read_weight_file
from vgg_jax.weights.source import SourceWeights


def read_source_weights(path: Path) -> SourceWeights:
    """Read a weight file and convert it."""
    return arrange_weights(read_weight_file(path))
