"""The lines of Python that load an exported file where it goes, ready to be pasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vgg_jax.layers import CONVOLUTIONS_PER_BLOCK
from vgg_jax.weights.export import Network, Target, channels_taken, spell_numbers

_PUBLISHED_UNITS = 4096  # of fc6 and fc7
_DROPOUT = 0.5  # of the published top


def loading_code(network: Network, target: Target, file: Path) -> str:
    """Return code that loads `file` and computes `outputs` from `images`.

    `outputs` are the probabilities, or the features of a backbone alone. `images` are RGB on the
    scale 0 to 255: `[B, H, W, 3]` in NumPy for Keras, `[B, 3, H, W]` in PyTorch.
    """
    return _WRITERS[target](network, str(file))


def _keras_model(network: Network, file: str) -> str:
    return f"""\
{_keras_imports(network)}
model = keras.models.load_model({file!r})
{_keras_outputs(network)}"""


def _keras_h5(network: Network, file: str) -> str:
    if network.is_classifier:
        return _keras_model(network, file)
    return f"""\
{_keras_imports(network)}
{_keras_network(network)}
model.load_weights({file!r})
{_keras_outputs(network)}"""


def _keras_imports(network: Network) -> str:
    if channels_taken(network, "keras") == "BGR":
        return "import keras\n"
    return "import keras\nimport numpy as np\n"


def _keras_network(network: Network) -> str:
    """Build the network that takes weights alone."""
    units = [bias.size for _, bias in network.dense.values()]
    if network.width == 1 and not units:
        return "model = keras.applications.VGG16(weights=None, include_top=False)"
    if network.width == 1 and units[:2] == [_PUBLISHED_UNITS] * 2:
        return f"model = keras.applications.VGG16(weights=None, classes={units[-1]})"
    side = network.image_size
    lines = [
        f"model = keras.Sequential([keras.Input(({side}, {side}, 3))])",
        f"for count, size in {_blocks(network)}:",
        "    for _ in range(count):",
        '        conv = keras.layers.Conv2D(size, 3, padding="same", activation="relu")',
        "        model.add(conv)",
        "    model.add(keras.layers.MaxPooling2D(2))",
    ]
    if units:
        lines.append("model.add(keras.layers.Flatten())")
    for count, activation in zip(units, network.activations, strict=True):
        lines.append(f'model.add(keras.layers.Dense({count}, activation="{activation}"))')
    return "\n".join(lines)


def _keras_outputs(network: Network) -> str:
    comment = f"# images: RGB, 0 to 255, [B, {_size(network)}, 3]"
    if channels_taken(network, "keras") == "BGR":
        return f"""\
{comment}
inputs = keras.applications.vgg16.preprocess_input(images.astype("float32"))
outputs = model.predict(inputs)"""
    return f"""\
{comment}
mean = np.float32({spell_numbers(network.mean)})
scale = np.float32({spell_numbers(network.scale)})
outputs = model.predict((images - mean) * scale)"""


def _torch(network: Network, file: str) -> str:
    outputs = {"softmax": ".softmax(1)", "sigmoid": ".sigmoid()"}[network.output]
    return f"""\
from collections import OrderedDict

import torch
from safetensors.torch import load_file
from torch import nn

features, channels = [], 3
for count, size in {_blocks(network)}:
    for _ in range(count):
        features += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU()]
        channels = size
    features.append(nn.MaxPool2d(2))
model = nn.Sequential(
    OrderedDict(
        features=nn.Sequential(*features),
{_torch_classifier(network)}    )
)
model.load_state_dict(load_file({file!r}))
model.eval()
# images: RGB, 0 to 255, [B, 3, {_size(network)}]
mean = torch.tensor({spell_numbers(network.mean)})[:, None, None]
scale = torch.tensor({spell_numbers(network.scale)})[:, None, None]
with torch.inference_mode():
    outputs = model((images - mean) * scale){outputs if network.dense else ""}"""


def _torch_classifier(network: Network) -> str:
    if not network.dense:
        return ""
    modules: list[str] = []
    for kernel, bias in network.dense.values():
        if modules:
            modules += ["nn.ReLU()"] + [f"nn.Dropout({_DROPOUT})"] * (network.head == "top")
        modules.append(f"nn.Linear({kernel.shape[0]}, {bias.size})")
    lines = ["average=nn.AdaptiveAvgPool2d(1),"] if network.head == "linear" else []
    lines += ["flatten=nn.Flatten(),", "classifier=nn.Sequential("]
    lines += [f"    {module}," for module in modules]
    return "".join(f"        {line}\n" for line in [*lines, "),"])


def _blocks(network: Network) -> list[tuple[int, int]]:
    """Return number and channels of the convolutions of each block."""
    return [
        (count, network.layers[f"conv{block}_1"][1].size)
        for block, count in enumerate(CONVOLUTIONS_PER_BLOCK, start=1)
    ]


def _size(network: Network) -> str:
    return f"{network.image_size}, {network.image_size}" if network.image_size else "H, W"


_WRITERS: Mapping[Target, Callable[[Network, str], str]] = {
    "keras-h5": _keras_h5,
    "keras": _keras_model,
    "torch-safetensors": _torch,
}
