"""What is exported to other programs, how they must prepare its input, and whole files."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vgg_jax.errors import WeightsError
from vgg_jax.layers import BASE_CHANNELS
from vgg_jax.weights.source import HEAD_LAYERS, PREPROCESSINGS, HeadName, Pair

Target = Literal["keras-h5", "keras", "torch-safetensors"]
SUFFIXES: Mapping[Target, str] = {
    "keras-h5": ".h5",
    "keras": ".keras",
    "torch-safetensors": ".safetensors",
}
_CAFFE = PREPROCESSINGS["caffe"]


@dataclass(frozen=True)
class Network:
    """A backbone and what follows it, to be exported; the arrays take RGB, as in `SourceWeights`.

    Attributes:
        layers: `conv1_1` to `conv5_3`, in order: kernel HWIO, bias; float32.
        head: What follows the backbone.
        dense: `HEAD_LAYERS[head]`, in order: kernel `[in, out]` over features flattened in the
            order height, width, channels; bias; float32.
        mean: RGB means on the scale 0 to 255 that the network's input has subtracted.
        scale: RGB factors on the scale 0 to 255 that it is then multiplied by.
        image_size: Side in pixels of the square images it takes; None for any size.
        output: What turns the last layer into probabilities.
        class_names: In the order of the probabilities; empty where they are not known.
        interpolation: How pictures were resized for its training, or empty.
    """

    layers: Mapping[str, Pair]
    head: HeadName
    dense: Mapping[str, Pair]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    image_size: int | None = None
    output: Literal["softmax", "sigmoid"] = "softmax"
    class_names: tuple[str, ...] = ()
    interpolation: str = ""

    def __post_init__(self) -> None:
        """Check the names of the layers behind the backbone.

        Raises:
            WeightsError: If they are not those of `head`.
        """
        if tuple(self.dense) != HEAD_LAYERS[self.head]:
            raise WeightsError(
                f"The layers {', '.join(self.dense)} are not those of {self.head!r}:"
                f" {', '.join(HEAD_LAYERS[self.head])}."
            )

    @property
    def is_classifier(self) -> bool:
        """Whether a trained head, and not the published top or nothing, follows the backbone."""
        return self.head not in ("", "top")

    @property
    def width(self) -> float:
        """Channels relative to the published network."""
        return self.layers["conv1_1"][1].size / BASE_CHANNELS[0]

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(k.size + b.size for k, b in (*self.layers.values(), *self.dense.values()))

    @property
    def activations(self) -> list[str]:
        """What follows each dense layer: `relu`, and `output` after the last one."""
        return ["relu"] * (len(self.dense) - 1) + [self.output] * bool(self.dense)


def channels_taken(network: Network, target: Target) -> Literal["RGB", "BGR"]:
    """Return the order of the channels that conv1_1 takes in an exported file.

    Keras' own `preprocess_input` swaps RGB for BGR and subtracts its means: where these are the
    network's means, a file for Keras goes with that function. All others take RGB.
    """
    return "BGR" if target != "torch-safetensors" and _is_caffe(network) else "RGB"


def describe_input(network: Network, target: Target) -> str:
    """Return how the exported network's input is made, as an expression of RGB 0-255."""
    if channels_taken(network, target) == "BGR":
        return "keras.applications.vgg16.preprocess_input(RGB 0-255)"
    difference = f"(RGB 0-255 - {spell_numbers(network.mean)})"
    if all(factor == 1 for factor in network.scale):
        return difference
    return f"{difference} * {spell_numbers(network.scale)}"


def spell_numbers(values: Sequence[float]) -> str:
    """Write numbers as a list, with all the digits that float32 can tell apart."""
    return f"[{', '.join(f'{value:.9g}' for value in values)}]"


def describe(network: Network, target: Target) -> dict[str, Any]:
    """Return what a program must know of an exported network beside its arrays, for JSON."""
    return {
        "head": network.head,
        "output": network.output if network.dense else None,
        "class_names": list(network.class_names),
        "image_size": network.image_size,
        "interpolation": network.interpolation,
        "channels": channels_taken(network, target),
        "mean": list(network.mean),  # of RGB, whatever the order that conv1_1 takes
        "scale": list(network.scale),
    }


def check_file(path: Path, target: Target) -> None:
    """Refuse a file that is there, or whose name would mislead the program that reads it.

    Raises:
        WeightsError: If so.
    """
    suffix = SUFFIXES[target]
    # Keras tells its formats apart by name, and takes .weights.h5 for another one than .h5.
    if path.suffix != suffix or path.name.endswith(".weights.h5"):
        stem = path.name.removesuffix(path.suffix).removesuffix(".weights")
        raise WeightsError(
            f"--to {target} writes a {suffix} file, not {path.name!r};"
            f" name it {str(path.with_name(stem + suffix))!r}, for instance."
        )
    if path.exists() or path.is_symlink():
        raise WeightsError(f"{path} exists; name another --out or delete it.")


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Give a scratch file beside `path` that becomes `path` if all goes well, and is gone if not.

    Raises:
        WeightsError: If the file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield scratch
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: h5py's, where the disk is full
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"Cannot write {path}: {reason[0]}") from error


def for_bgr(kernel: np.ndarray) -> np.ndarray:
    """Return a HWIO kernel that takes RGB as one that takes BGR."""
    return np.ascontiguousarray(kernel[:, :, ::-1])


def _is_caffe(network: Network) -> bool:
    return (network.mean, network.scale) == (_CAFFE.mean, _CAFFE.scale)
