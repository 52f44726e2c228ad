"""Under which names features are kept: all that they depend on.

A table on disk goes by what all its rows have in common, a row by the picture that it was made of.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgg_jax.compilation import processors_of_xla
from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import Examples
from vgg_jax.model.arithmetic import multiplies_bfloat16
from vgg_jax.model.classifier import Parameters
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.plugin_packages import canonical_package
from vgg_jax.plugins import OWN_PACKAGE, find_plugin
from vgg_jax.training.run_plugins import record_plugins
from vgg_jax.training.steps import Steps
from vgg_jax.weights.checksums import array_sha256, file_sha256, json_sha256

_OURS = Path(__file__).parents[1]
# Our own code from a picture's bytes to its features, and what else a view of it goes through: an
# edit, or a pull, leaves the version as it is. A test holds these against what runs.
_CODE = (
    *("layers.py", "data/decode.py", "data/pipeline.py", "training/steps.py", "workflows/feed.py"),
    *("model/arithmetic.py", "model/classifier.py", "model/convolution.py", "model/pieces.py"),
    "model/vgg16.py",
)
_CODE_OF_VIEWS = ("contract.py", "augment/*.py", "data/examples.py")
_PACKAGES = ("vgg-jax", "pillow", "numpy", "jax", "jaxlib", "flax")
_JAX_OPTIONS = (
    *("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64"),
    *("jax_threefry_partitionable", "jax_random_seed_offset"),
)
# From so many rows on, XLA's convolutions on a CPU give a row the same bits in every batch.
_ROWS_ALIKE = 4
_CPUINFO = Path("/proc/cpuinfo")
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[(.*?)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w.-]+)["']""")


def settings_of(
    config: ResolvedConfig,
    steps: Steps,
    frozen: Parameters,
    view: int | None,
    rows: int,
) -> dict[str, Any]:
    """Return what features depend on beside the picture, as JSON can hold it.

    Args:
        config: Of the training.
        steps: Its programs.
        frozen: The parameters of the prefix.
        view: Number of the view that augmentations make of each picture; None for the pictures as
            they are.
        rows: Of a batch on one device.
    """
    backbone = steps.functional.bind({}).backbone
    settings: dict[str, Any] = {
        "code": _checksum(_CODE),
        "boundary": config.train_from,
        "prefix": json_sha256({path: array_sha256(np.asarray(v)) for path, v in frozen.items()}),
        "mean": backbone.mean,
        "scale": backbone.scale,
        "image_size": config.image_size,
        "interpolation": config.interpolation,
        "precision": steps.precision,
        "bfloat16_products": steps.precision == "bfloat16" and multiplies_bfloat16(),
        "features_dtype": config.features_dtype,
        # What else may compute other bits.
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "options": {name: str(jax.config.values[name]) for name in _JAX_OPTIONS},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device": _device(),
        "on_one_cpu": steps.on_one_cpu,
        "processors": processors_of_xla(),
        "rows": min(rows, _ROWS_ALIKE),
    }
    if view is not None:
        settings |= {
            "augment": [*_augmentations(config)],
            "augment_code": _checksum(_CODE_OF_VIEWS),
            "fill": config.fill,
            "fill_value": config.fill_value,
            "seed": config.seed,
            "view": view,
        }
    return settings


def row_names(examples: Examples, *, augmented: bool) -> np.ndarray:
    """Return the names of the rows of a split's examples, uint8 `[N, 16]`.

    Of equal pictures each is augmented in its own way.
    """
    if not augmented:
        return examples.contents
    pairs = zip(examples.contents, examples.occurrences.astype("<u4"), strict=True)
    names = [hashlib.blake2b(c.tobytes() + n.tobytes(), digest_size=16).digest() for c, n in pairs]
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, 16)


def _device() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    try:
        found = re.search(r"model name\s*: (.*)", _CPUINFO.read_text(encoding="utf-8"))
    except OSError:  # not on this system
        found = None
    return f"{platform.machine()} {found[1] if found else platform.processor()}"


def _augmentations(config: ResolvedConfig) -> Iterator[dict[str, Any]]:
    """Yield what each augmentation computes with: its options, and its code."""
    records = [r for r in record_plugins(config) if r["kind"] == "augmentation"]
    for record, text in zip(records, config.augment, strict=True):
        if "sha256" in record:  # a file goes by its content, wherever it is
            yield {name: record[name] for name in record.keys() - {"package", "file"}}
        elif record["package"] == OWN_PACKAGE:
            yield record
        else:
            factory = find_plugin("augmentation", parse_choice(text).ref).load()
            yield record | {
                "code": _code_of(factory.__module__),
                "needs": _versions_needed(record["package"]),
            }


@functools.cache  # a process goes on with the code that it began with
def _checksum(patterns: tuple[str, ...]) -> str:
    """Return one checksum of files of our own."""
    files = [path for pattern in patterns for path in _OURS.glob(pattern)]
    return json_sha256({path.relative_to(_OURS).as_posix(): file_sha256(path) for path in files})


def _code_of(module: str) -> dict[str, str]:
    """Return the checksums of a module's files, of its whole package where it is in one.

    Somebody who writes a package changes it without changing its version.
    """
    found: dict[str, str] = {}
    # Namespaces have no file, or one in the folder of another package.
    for name in itertools.accumulate(module.split("."), "{}.{}".format):
        if (text := getattr(sys.modules[name], "__file__", None)) is None:
            continue
        file = Path(text)
        files = file.parent.rglob("*.py") if file.name == "__init__.py" else [file]
        found |= {f"{name}/{path.relative_to(file.parent)}": file_sha256(path) for path in files}
    return found


def _versions_needed(package: str) -> dict[str, str]:
    """Return the versions of a package, of what it needs, of what that needs, and so on.

    What is installed counts, even if a marker says that it is not needed here: it may be imported.
    What all features go by is left out, with what it needs.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(canonical_package(package), "")]  # each with one of its extras, or without
    while waiting:
        name, extra = node = waiting.pop()
        if node in seen or name in _PACKAGES:
            continue
        seen.add(node)
        try:
            found[name] = metadata.version(name)
            requirements = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # not needed on this system
            continue
        for text in requirements:
            match = _REQUIREMENT.match(text)
            if match and extra in ([*map(canonical_package, _EXTRA.findall(text))] or [""]):
                extras = ("", *(match[2] or "").split(","))
                waiting += [(canonical_package(match[1]), canonical_package(e)) for e in extras]
    return found
