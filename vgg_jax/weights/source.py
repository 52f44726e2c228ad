"""The one form that every weight file is read into, whatever its layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SourceWeights:
    """Checked weights of a VGG16 that takes RGB, and where they came from.

    Attributes:
        layers: `conv1_1` to `conv5_3`, in order: kernel `[3, 3, in, out]`, bias `[out]`, float32.
        top: `fc6`, `fc7`, `fc8`: kernel `[in, out]`, bias `[out]`, float32; empty without top.
        width: Channels relative to the published network.
        mean: RGB means on the scale 0 to 255 that the network's input has subtracted.
        scale: RGB factors on the scale 0 to 255 that it is then multiplied by.
        layout: The layout of the file, in words.
        source: The file's name.
        sha256: The file's SHA-256, in hexadecimal.
    """

    layers: Mapping[str, tuple[np.ndarray, np.ndarray]]
    top: Mapping[str, tuple[np.ndarray, np.ndarray]]
    width: float
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    layout: str
    source: str
    sha256: str

    @property
    def parameters(self) -> int:
        """How many numbers the layers and the top hold."""
        return sum(k.size + b.size for k, b in (*self.layers.values(), *self.top.values()))
