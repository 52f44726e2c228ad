"""Finds VGG16 in the HDF5 files of Keras: weights and whole models, by name or by number.

Keras 1 and 2, and the files that Keras publishes, list the layers in the attribute `layer_names`
and each layer's arrays in `weight_names`. Keras 3 (`.weights.h5`) names groups by class and number
instead: `layers/conv2d`, `layers/conv2d_1`, …. A backbone nested in a user's model is found in
either. No array is read here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import h5py

from vgg_jax.errors import WeightsError
from vgg_jax.layers import CONVOLUTIONS, keras_name
from vgg_jax.weights.hdf5 import (
    array_paths,
    find_member,
    hdf5_errors,
    read_strings,
    source_array,
    storage_problem,
)
from vgg_jax.weights.keras_model import ModelDescription, describe_model
from vgg_jax.weights.own_facts import OWN_KEY, read_own_facts
from vgg_jax.weights.source import Contents, FoundLayer, SourceArray

_CONVOLUTIONS = {keras_name(layer): layer for layer in CONVOLUTIONS}
_TOP = ("fc1", "fc2", "predictions")
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
_ROLE = re.compile(r"(?:(.*)_)?(?:(?P<kernel>kernel|W)|(?P<bias>bias|b))(?:_\d+)?(?::0)?")
_WITHOUT_LAYERS = {"top_level_model_weights"}
_NUMBERED = re.compile(r"(?P<layer>.*)/vars/(?:(?P<kernel>0)|(?P<bias>1))")
_NO_LAYERS = ("optimizer", "seed_generator")
_NAMES_SHOWN = 6

_Pair = dict[str, SourceArray]  # by role, kernel and bias


def find_keras_h5(path: Path, file: h5py.File, layout: str | None = None) -> Contents:
    """Find VGG16 in an open HDF5 file of Keras, of any version, weights or whole model.

    Args:
        path: The file's name, for messages.
        file: Must stay open until the arrays are read.
        layout: Which of the three layouts to take it for, if not what it looks like.

    Raises:
        WeightsError: If the file is no weight file of Keras, or of another network.
    """
    with hdf5_errors(path):
        layout = layout or _recognise(path, file)
        if layout == "keras-weights-h5":
            contents = find_numbered(path, file, layout)
        elif layout == "keras-h5":
            contents = _find_listed(path, file, layout, None)
        else:
            contents = _find_in_model(path, file, layout)
        own = read_strings(file, OWN_KEY)
        return replace(contents, facts=read_own_facts(own[0])) if own else contents


def _find_in_model(path: Path, file: h5py.File, layout: str) -> Contents:
    weights = find_member(file, "model_weights")
    if not isinstance(weights, h5py.Group):
        raise WeightsError(f"{path} is no whole Keras model: 'model_weights' {weights}.")
    config = read_strings(file, "model_config")
    return _find_listed(path, weights, layout, describe_model(config[0]) if config else None)


def _recognise(path: Path, file: h5py.File) -> str:
    if "model_weights" in file:
        return "keras-model-h5"
    if read_strings(file, "layer_names") is not None:
        return "keras-h5"
    if {"layers", "_layer_checkpoint_dependencies"} & set(file):
        return "keras-weights-h5"
    raise WeightsError(
        f"{path} is HDF5, but holds no weights of Keras: there is no 'layer_names', no"
        f" 'model_weights' and no 'layers', but {listed(list(file))}."
    )


def find_numbered(
    path: Path, file: h5py.File, layout: str, model: ModelDescription | None = None
) -> Contents:
    """Find VGG16 in a weight file of Keras 3, alone or from within a `.keras` file.

    Raises:
        WeightsError: If the file holds another network.
    """
    with hdf5_errors(path):
        found: dict[str, _Pair] = {}
        names: dict[str, str] = {}
        problems: list[str] = []
        for member in sorted(array_paths(file), key=natural_order):
            if any(part.startswith(_NO_LAYERS) for part in member.split("/")):
                continue
            match = _NUMBERED.fullmatch(member)
            if match is None:
                problems.append(f"unexpected array {member!r}")
                continue
            layer, name = match["layer"], member.rsplit("/", 1)[1]
            group = find_member(file, f"{layer}/vars")
            if isinstance(group, h5py.Group):  # as it must be, since it holds the array
                _add(found.setdefault(layer, {}), match, member, group, name, problems)
                # Newer versions write the layer's own name beside its arrays.
                names[layer] = (read_strings(group, "name") or [layer])[0]
    _check_network(path, names.values())
    return _classify(path, found, names, layout, problems, model)


def natural_order(text: str) -> list[tuple[int, str | int]]:
    """Return a sort key by which `conv2d_2` comes before `conv2d_10`, and `conv2d` before both."""
    return [
        (1, int(part)) if part.isdigit() else (0, part)
        for part in re.split(r"(\d+)", text.replace("/", "\0"))
    ]


def listed(names: list[str]) -> str:
    """Return the first few names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN]) or "nothing"
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _find_listed(
    path: Path, root: h5py.Group, layout: str, model: ModelDescription | None
) -> Contents:
    """Find the layers that the attribute `layer_names` lists."""
    layer_names = read_strings(root, "layer_names") or []
    found: dict[str, _Pair] = {}
    problems: list[str] = []
    for name, count in Counter(layer_names).items():
        if count > 1:
            problems.append(f"{name}: listed {count} times")
        group = find_member(root, name)
        array_names = read_strings(group, "weight_names") if isinstance(group, h5py.Group) else None
        if not isinstance(group, h5py.Group):
            problems.append(f"{name}: {group if isinstance(group, str) else 'is not a group'}")
        elif array_names is None:
            problems.append(f"{name}: has no attribute 'weight_names'")
        else:
            left_over = sorted(array_paths(group) - set(array_names))
            problems += [f"{name}: unexpected array {path!r}" for path in left_over]
            _add_arrays(found, name, group, array_names, problems)
    left_over = set(root) - set(layer_names) - _WITHOUT_LAYERS
    problems += [f"{name}: unexpected, not in 'layer_names'" for name in sorted(left_over)]
    # One alone may be a layer of the user's own; a whole model is known by its configuration.
    if model is None and len(set(_TOP) & set(layer_names)) == 2:
        problems += [f"{name}: missing" for name in _TOP if name not in layer_names]
    _check_network(path, [*layer_names, *found])
    return _classify(path, found, {name: name for name in found}, layout, problems, model)


def _add_arrays(
    found: dict[str, _Pair],
    layer: str,
    group: h5py.Group,
    array_names: list[str],
    problems: list[str],
) -> None:
    """Add the arrays of a layer, or of each layer of the model that it is."""
    roles = {name: _ROLE.fullmatch(name.rsplit("/", 1)[-1]) for name in array_names}
    is_model = len(array_names) > 2
    if layer not in _CONVOLUTIONS and layer not in _TOP and array_names and not any(roles.values()):
        problems.append(f"{layer}: unexpected layer, with {listed(array_names)}")
        return
    if not is_model and (array_names or layer in _CONVOLUTIONS):
        found.setdefault(layer, {})
    for name, match in roles.items():
        if match is None:
            problems.append(f"{layer}: unexpected array {name!r}")
            continue
        owner = layer
        if is_model:  # its layers' names precede the role: block1_conv1/kernel, block1_conv1_W_1
            owner = match[1] or next(reversed(name.split("/")[:-1]), layer)
        _add(found.setdefault(owner, {}), match, f"{layer}/{name}", group, name, problems)


def _add(
    pair: _Pair, match: re.Match[str], path: str, group: h5py.Group, name: str, problems: list[str]
) -> None:
    """Add one array to a layer's pair, or say what is wrong with it."""
    role = "kernel" if match["kernel"] else "bias"
    dataset = find_member(group, name)
    label = path.removesuffix(f"/{name}")
    if role in pair:
        problems.append(f"{label}: unexpected array {name!r}")
    elif not isinstance(dataset, h5py.Dataset):
        problems.append(
            f"{label}: {name!r} {dataset if isinstance(dataset, str) else 'is not an array'}"
        )
    else:
        problem = storage_problem(dataset)
        if problem is not None:
            problems.append(f"{label}: {role} {problem}")
        pair[role] = source_array(path, dataset)


def _check_network(path: Path, layer_names: Iterable[str]) -> None:
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


def _classify(
    path: Path,
    found: Mapping[str, _Pair],
    names: Mapping[str, str],
    layout: str,
    problems: list[str],
    model: ModelDescription | None,
) -> Contents:
    """Tell convolutions from dense layers; `names` has Keras' name of each found layer."""
    layers: dict[str, FoundLayer] = {}
    convolutions: list[FoundLayer] = []
    dense: list[FoundLayer] = []
    by_name = any(names[key] in _CONVOLUTIONS for key in found)
    for key, pair in found.items():
        name = names[key]
        known = name in _CONVOLUTIONS or name in _TOP
        if pair.keys() != {"kernel", "bias"}:
            told = any(
                problem.startswith(f"{key}: ") and "unexpected" not in problem
                for problem in problems
            )
            if known and not told:
                problems += [
                    f"{name}: has no {role}" for role in ("kernel", "bias") if role not in pair
                ]
            elif not known:
                arrays = [array.path.removeprefix(f"{key}/") for array in pair.values()]
                problems.append(f"{key}: unexpected layer, with {listed(arrays)}")
            continue
        layer = FoundLayer(name, pair["kernel"], pair["bias"])
        if name in _CONVOLUTIONS:
            if _CONVOLUTIONS[name] in layers:
                problems.append(f"{name}: is there twice")
            layers[_CONVOLUTIONS[name]] = layer
        elif name in _TOP or len(layer.kernel.shape) == 2:
            dense.append(layer)
        elif by_name or len(layer.kernel.shape) != 4:
            problems.append(f"{key}: unexpected layer, with {listed([layer.kernel.path])}")
        else:
            convolutions.append(layer)
    if not by_name:
        if len(convolutions) != len(CONVOLUTIONS):
            raise WeightsError(
                f"{path} holds no VGG16: it has {len(convolutions)} convolutions, not 13, none of"
                f" them block1_conv1 to block5_conv3.\nIts layers: {listed([*names.values()])}."
            )
        if model is not None:  # a file may list what is trained before what is frozen
            order = {name: place for place, name in enumerate(model.convolutions)}
            convolutions.sort(key=lambda layer: order.get(layer.label, 0))
        layers = dict(zip(CONVOLUTIONS, convolutions, strict=True))
    problems += [
        f"{keras_name(name)}: missing"
        for name in CONVOLUTIONS
        if keras_name(name) not in names.values() and by_name
    ]
    ordered = {name: layers[name] for name in CONVOLUTIONS if name in layers}
    if model is None:
        return Contents(layout, ordered, tuple(dense), tuple(problems))
    # The model's configuration has shown that its backbone is whole: the rest is the head's.
    backbone = {*_CONVOLUTIONS, *(part for layer in ordered.values() for part in _places(layer))}
    of_head = [problem for problem in problems if problem.partition(": ")[0] not in backbone]
    if model.dense != len(dense) and not of_head:
        of_head.append(f"has {model.dense} dense layers, but arrays of {len(dense)}")
    return Contents(
        layout=layout,
        layers=ordered,
        dense=tuple(dense),
        problems=(*(problem for problem in problems if problem not in of_head), *model.problems),
        head_problems=(*of_head, *model.head_problems),
        facts=model.facts,
    )


def _places(layer: FoundLayer) -> tuple[str, ...]:
    """Return what problems of a layer, or of the model that it is in, begin with."""
    return layer.label, layer.kernel.path.split("/")[0], layer.kernel.path.rsplit("/", 2)[0]
