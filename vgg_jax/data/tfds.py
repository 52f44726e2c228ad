"""Data that TensorFlow Datasets has prepared as ArrayRecord, read without TensorFlow.

The folder of a prepared data set describes itself; the code that made it is not imported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.data.examples import SPLIT_NAMES, DataSet, Examples, Split
from vgg_jax.errors import DataError, did_you_mean

PREFIX = "tfds:"


def open_tfds(name: str) -> DataSet:
    """Open `NAME[/CONFIG][:VERSION]` in the folder where TFDS keeps its data.

    That folder is the environment variable TFDS_DATA_DIR, or `~/tensorflow_datasets`. Reads each
    record once, for its label.

    Raises:
        DataError: If the data are unknown, not prepared as ArrayRecord, or not labelled pictures.
    """
    folder = _find_folder(name)
    # Not at the top of the module: it costs a second, which folders of pictures need not pay.
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    info = builder.info
    formats = {file_format.value for file_format in info.available_file_formats()}
    if "array_record" not in formats:
        raise DataError(
            f"TFDS data {name!r} are prepared as {', '.join(sorted(formats))} in {folder}, "
            "which only TensorFlow reads.\nPrepare them as array_record, in another folder: "
            f"export TFDS_DATA_DIR=~/tfds_array_record; {_command(name)}"
        )
    image, label = _keys(name, info)
    pictures = [
        key for key, feature in info.features.items() if isinstance(feature, tfds.features.Image)
    ]
    decoders = {key: tfds.decode.SkipDecoding() for key in pictures}
    class_names = tuple(info.features[label].names)
    splits: dict[Split, Examples] = {}
    notes: list[str] = []
    for split_name in info.splits:
        split = SPLIT_NAMES.get(split_name)
        if split is None:
            notes.append(f"Not used: the split {split_name!r} of {PREFIX}{name}.")
            continue
        records = builder.as_data_source(split_name, decoders=decoders, file_format="array_record")
        examples = _examples(f"{PREFIX}{name}/{split_name}", records, image, label)
        if not len(examples) or examples.labels.min() < 0:
            notes.append(f"Not used: the split {split_name!r} of {PREFIX}{name} has no labels.")
            continue
        splits[split] = examples
        empty = sorted(set(range(len(class_names))) - set(examples.labels.tolist()))
        if empty:
            notes.append(
                f"{len(empty)} of {len(class_names)} classes, such as {class_names[empty[0]]}, "
                f"have no examples in the split {split_name!r}."
            )
    if not splits:
        raise DataError(
            f"TFDS data {name!r} have no labelled train, validation or test split, only "
            f"{', '.join(info.splits) or 'none'}. Use other data."
        )
    return DataSet(re.sub(r"[/:]", "-", name), class_names, splits, tuple(notes))


def _examples(name: str, records: Sequence[Any], image: str, label: str) -> Examples:
    labels = np.empty(len(records), np.int32)
    sizes = np.empty(len(records), np.int64)
    for i in range(len(records)):
        record = records[i]
        labels[i], sizes[i] = record[label], len(record[image])
    names = [f"{name}#{i}" for i in range(len(records))]
    return Examples(names, labels, lambda i: bytes(records[i][image]), lambda: sizes)


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Return the names of the features that hold the picture and its label."""
    import tensorflow_datasets as tfds

    image, label = info.supervised_keys or ("image", "label")
    features = dict(info.features.items())
    if (
        isinstance(features.get(image), tfds.features.Image)
        and features[image].np_dtype != np.float32  # floats, kept as the bytes of an RGBA picture
        and isinstance(features.get(label), tfds.features.ClassLabel)
        and (features[label].num_classes or 0) > 1
    ):
        return image, label
    raise DataError(
        f"TFDS data {name!r} are not pictures with one of several class labels; their features "
        f"are: {', '.join(sorted(features))}. Use other data."
    )


def _find_folder(name: str) -> Path:
    """Return the folder of the wanted version, or of the newest one."""
    root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    path, _, version = name.partition(":")
    base, _, config = path.partition("/")
    if not config:
        config = _default_config(root / base)
    configs = [child.name for child in _sub_folders(root / base) if _versions(child)]
    versions = _versions(root / base / config)
    if version in versions or (versions and not version):
        return root / base / config / (version or versions[-1])
    if not _versions(root / base) and not configs:
        raise _not_prepared(name, base, root)
    found = [":".join((base, each)) for each in _versions(root / base)]
    found += [f"{base}/{each}" for each in configs]
    raise DataError(
        f"TFDS data {name!r} are not prepared in {root / base}; there are: {', '.join(found)}.\n"
        f"Use one of these, or prepare them once with: {_command(name)}"
    )


def _not_prepared(name: str, base: str, root: Path) -> DataError:
    import tensorflow_datasets as tfds

    prepared = [child.name for child in _sub_folders(root)]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        hint = did_you_mean(base, [*prepared, *known])
        return DataError(
            f"TFDS knows no data named {base!r}, and none are prepared in {root} "
            f"(TFDS_DATA_DIR).{hint}"
        )
    return DataError(
        f"TFDS data {name!r} are not prepared in {root} (TFDS_DATA_DIR). Prepare them once with:\n"
        f"{_command(name)}\n"
        "Most sets need TensorFlow for this, in this or another environment; reading them does not."
    )


def _command(name: str) -> str:
    return f"python -c \"import tensorflow_datasets as tfds; tfds.data_source('{name}')\""


def _default_config(folder: Path) -> str:
    """Return the name of the default configuration, or an empty string where there are none."""
    metadata = folder / ".config" / "metadata.json"
    if metadata.is_file():
        return json.loads(metadata.read_text()).get("default_config_name") or ""
    configs = [child.name for child in _sub_folders(folder) if _versions(child)]
    return configs[0] if len(configs) == 1 else ""


def _versions(folder: Path) -> list[str]:
    """Return the versions prepared in `folder`, oldest first."""
    found = [
        child.name
        for child in _sub_folders(folder)
        if re.fullmatch(r"\d+\.\d+\.\d+", child.name) and (child / "features.json").is_file()
    ]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def _sub_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
