"""Reads VGG16 weights in the HDF5 layout of the files that Keras published.

The root's attribute `layer_names` lists the layers, each layer's attribute `weight_names` its
arrays: names are taken from there. No array is read before every name and declared shape is right.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from vgg_jax.errors import WeightsError
from vgg_jax.layers import (
    BASE_CHANNELS,
    CONVOLUTIONS,
    IMAGENET_MEAN_RGB,
    block_of,
    keras_name,
    kernel_shapes,
)
from vgg_jax.weights.hdf5 import (
    array_paths,
    find_member,
    open_hdf5,
    read_float32,
    read_strings,
    storage_problem,
)
from vgg_jax.weights.source import SourceWeights

LAYOUT = "Keras HDF5, as published"
_CONVOLUTIONS = {keras_name(layer): layer for layer in CONVOLUTIONS}
_TOP = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
_VGG19 = ("block3_conv4", "block4_conv4", "block5_conv4")
_OTHER_NETWORKS = (  # layer names that give a network of keras.applications away
    (r"block14_sepconv", "an Xception"),
    (r"conv_dw_|expanded_conv", "a MobileNet"),
    (r"mixed\d|mixed_\d", "an Inception network"),
    (r"normal_conv_", "a NASNet"),
    (r"block\d[a-z]_", "an EfficientNet"),
    (r"pool2_conv", "a DenseNet"),
    (r"conv\d_block|res\d[a-z]_", "a ResNet"),
    (r"convnext", "a ConvNeXt"),
)
_KERNEL = re.compile(r"(?:.*_)?(?:kernel|W)(?:_\d+)?(?::0)?")
_BIAS = re.compile(r"(?:.*_)?(?:bias|b)(?:_\d+)?(?::0)?")
_IGNORED_GROUPS = {"top_level_model_weights"}
_MOST_UNPACKED = 64  # times the file: real weights hardly compress at all
_NAMES_SHOWN = 6

_Datasets = dict[str, tuple[h5py.Dataset, h5py.Dataset]]


def read_keras_h5(path: Path) -> SourceWeights:
    """Read a VGG16 weight file in the published layout, with or without top, of any width.

    Args:
        path: HDF5 file of float16, float32 or float64 arrays, conv1_1 taking BGR.

    Returns:
        The weights as float32, conv1_1 taking RGB.

    Raises:
        WeightsError: If the file is not that; every mismatch is named.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        layer_names = _layer_names(path, file)
        _check_network(path, layer_names)
        found, problems = _find_arrays(file, layer_names)
        width = _width(found)
        problems += _shape_problems(found, width)
        problems += _storage_problems(found, path.stat().st_size)
        _raise_together(path, problems)
        arrays = {name: (read_float32(k), read_float32(b)) for name, (k, b) in found.items()}
    _raise_together(path, _values_not_finite(arrays))
    kernel, bias = arrays["block1_conv1"]
    arrays["block1_conv1"] = np.ascontiguousarray(kernel[:, :, ::-1]), bias  # from BGR to RGB
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return SourceWeights(
        layers={layer: arrays[name] for name, layer in _CONVOLUTIONS.items()},
        top={layer: arrays[name] for name, layer in _TOP.items() if name in arrays},
        width=width,
        mean=IMAGENET_MEAN_RGB,
        scale=(1.0, 1.0, 1.0),
        layout=LAYOUT,
        source=path.name,
        sha256=sha256,
    )


def _layer_names(path: Path, file: h5py.File) -> list[str]:
    names = read_strings(file, "layer_names")
    if names is not None:
        return names
    if "model_config" in file.attrs or "model_weights" in file:
        kind = "it looks like a whole Keras model (model.save)"
    elif {"layers", "_layer_checkpoint_dependencies"} & set(file):
        kind = "it looks like a Keras 3 weight file (.weights.h5)"
    else:
        kind = f"it holds {_listed(list(file))}"
    raise WeightsError(
        f"{path} has no attribute 'layer_names': {kind}.\n"
        "Only the layout of the VGG16 weights that Keras publishes is read for now."
    )


def _check_network(path: Path, layer_names: list[str]) -> None:
    """Refuse another network in one sentence, not with a list of mismatches."""
    given_away = [(name, "a VGG19") for name in layer_names if name in _VGG19] + [
        (name, network)
        for pattern, network in _OTHER_NETWORKS
        for name in layer_names
        if re.match(pattern, name)
    ]
    if given_away:
        name, network = given_away[0]
        raise WeightsError(f"{path} holds {network} (it has {name!r}), but a VGG16 is needed.")
    if not set(layer_names) & set(_CONVOLUTIONS):
        raise WeightsError(
            f"{path} holds no VGG16: none of its layers is one of block1_conv1 to block5_conv3.\n"
            f"Its layers: {_listed(layer_names)}."
        )


def _find_arrays(file: h5py.File, layer_names: list[str]) -> tuple[_Datasets, list[str]]:
    """Return each layer's kernel and bias, unread, by Keras' names, and all that is wrong."""
    found: _Datasets = {}
    problems: list[str] = []
    for name, count in Counter(layer_names).items():
        if count > 1:
            problems.append(f"{name}: listed {count} times")
        group = find_member(file, name)
        array_names = read_strings(group, "weight_names") if isinstance(group, h5py.Group) else None
        if not isinstance(group, h5py.Group):
            problems.append(f"{name}: {group if isinstance(group, str) else 'is not a group'}")
        elif array_names is None:
            problems.append(f"{name}: has no attribute 'weight_names'")
        elif array_names and name not in _CONVOLUTIONS and name not in _TOP:
            problems.append(f"{name}: unexpected layer, with {_listed(array_names)}")
        else:
            left_over = sorted(array_paths(group) - set(array_names))
            problems += [f"{name}: unexpected array {path!r}" for path in left_over]
            if name in _CONVOLUTIONS or name in _TOP:
                pair, wrong = _kernel_and_bias(group, array_names)
                problems += [f"{name}: {problem}" for problem in wrong]
                found |= {name: pair} if pair else {}
    expected = [*_CONVOLUTIONS, *(_TOP if set(_TOP) & set(layer_names) else ())]
    problems += [f"{name}: missing" for name in expected if name not in layer_names]
    left_over = set(file) - set(layer_names) - _IGNORED_GROUPS
    problems += [f"{name}: unexpected, not in 'layer_names'" for name in sorted(left_over)]
    return found, problems


def _kernel_and_bias(
    group: h5py.Group, array_names: list[str]
) -> tuple[tuple[h5py.Dataset, h5py.Dataset] | None, list[str]]:
    """Tell kernel from bias by name; returns the pair, if it is whole, and what is wrong."""
    pair: dict[str, h5py.Dataset] = {}
    problems: list[str] = []
    for name in array_names:
        last = name.rsplit("/", 1)[-1]
        role = "kernel" if _KERNEL.fullmatch(last) else "bias" if _BIAS.fullmatch(last) else None
        dataset = find_member(group, name)
        if role is None or role in pair:
            problems.append(f"unexpected array {name!r}")
        elif isinstance(dataset, h5py.Dataset):
            pair[role] = dataset
        else:
            problems.append(
                f"{name!r} {dataset if isinstance(dataset, str) else 'is not an array'}"
            )
    if len(pair) == 2:
        return (pair["kernel"], pair["bias"]), problems
    if not problems:
        problems = [f"has no {role}" for role in ("kernel", "bias") if role not in pair]
    return None, problems


def _width(found: _Datasets) -> float:
    """Return the width that most convolutions have, so that the odd one out is the one blamed."""
    widths = Counter(
        kernel.shape[3] / BASE_CHANNELS[block_of(_CONVOLUTIONS[name]) - 1]
        for name, (kernel, _) in found.items()
        if name in _CONVOLUTIONS and kernel.ndim == 4 and kernel.shape[3] > 0
    )
    width = widths.most_common(1)[0][0] if widths else 1.0
    return width if (width * 64).is_integer() else 1.0


def _shape_problems(found: _Datasets, width: float) -> list[str]:
    problems: list[str] = []
    expected: dict[str, tuple[int, ...]] = {
        keras_name(layer): shape for layer, shape in kernel_shapes(width).items()
    }
    units = 49 * expected["block5_conv3"][-1]  # the top sees 7 x 7 positions
    for name in _TOP:
        if name in found:
            kernel = found[name][0]
            units_out = kernel.shape[-1] if kernel.ndim == 2 else units
            expected[name] = (units, units_out)
            units = units_out
    for name, (kernel, bias) in found.items():
        shape = expected[name]
        if kernel.shape != shape or 0 in shape:
            problems.append(
                f"{name}: kernel is {_shape(kernel.shape)}, "
                f"but {_shape(shape)} fits the rest (width {width:g})"
            )
        if bias.shape != shape[-1:]:
            problems.append(f"{name}: bias is {_shape(bias.shape)}, not {_shape(shape[-1:])}")
    return problems


def _storage_problems(found: _Datasets, file_size: int) -> list[str]:
    problems = [
        f"{name}: {role} {problem}"
        for name, pair in found.items()
        for role, dataset in zip(("kernel", "bias"), pair, strict=True)
        if (problem := storage_problem(dataset)) is not None
    ]
    declared = sum(dataset.nbytes for pair in found.values() for dataset in pair)
    if declared > _MOST_UNPACKED * file_size:
        problems.append(
            f"its arrays claim {declared:,} bytes, though the whole file has {file_size:,}"
        )
    return problems


def _values_not_finite(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    problems: list[str] = []
    for name, pair in arrays.items():
        for role, array in zip(("kernel", "bias"), pair, strict=True):
            # The extremes are NaN or infinite where anything is, without a copy of the array.
            if not (np.isfinite(array.min()) and np.isfinite(array.max())):
                count = int(array.size - np.isfinite(array).sum())
                problems.append(f"{name}: {role} has {count:,} values that are not finite")
    return problems


def _raise_together(path: Path, problems: list[str]) -> None:
    if len(problems) == 1:
        raise WeightsError(f"{path} is not a usable VGG16 weight file: {problems[0]}.")
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise WeightsError(
            f"{path} is not a usable VGG16 weight file; {len(problems)} mismatches:\n{lines}"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN]) or "nothing"
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
