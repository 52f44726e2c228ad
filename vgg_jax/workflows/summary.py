"""The table of a classifier's layers, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vgg_jax.config import TrainConfig
from vgg_jax.layers import LAYERS, keras_name
from vgg_jax.model.classifier import Classifier, build_classifier, make_functional
from vgg_jax.model.freezing import label_parameters
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.workflows.backbone import open_run_backbone


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One row of the table.

    Attributes:
        layer: The paper's name, or the path of a parameterised part of the head.
        keras_name: Keras' name of a backbone layer, else empty.
        output_shape: Of one example.
        parameters: Number of parameters.
        trained: Whether they are trained; None where there are none.
        multiply_adds: Of one example; None for a head's layers that are not dense, whose number of
            uses their shapes do not tell.
    """

    layer: str
    keras_name: str
    output_shape: tuple[int, ...]
    parameters: int
    trained: bool | None
    multiply_adds: int | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The table and its sums, the multiply-adds without those that are None."""

    image_size: int
    layers: list[LayerSummary]
    parameters: int
    trained_parameters: int
    multiply_adds: int
    trained_multiply_adds: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return dataclasses.asdict(self)


def summarise_run(
    run: str | Path, weights: str | None = None, *, allow_local_code: bool = False
) -> Summary:
    """Summarise the classifier of a run; options as for `load_classifier`.

    Raises:
        RunError: If the folder is no run.
        WeightsError: If the backbone is gone or is another one.
    """
    folder = RunFolder(Path(run))
    record = folder.read_record()
    config = folder.read_config(allow_local_code=allow_local_code)
    width = open_run_backbone(folder, record, weights).backbone.width
    return summarise(config, num_classes=len(record.class_names), width=width)


def summarise(config: TrainConfig, *, num_classes: int, width: float = 1.0) -> Summary:
    """Summarise what `config` would train, on a backbone of this width."""
    image_size = config.image_size or 224

    def build() -> Classifier:
        return build_classifier(
            VGG16(width, rngs=nnx.Rngs(0)),
            parse_choice(config.head),
            num_classes=num_classes,
            image_size=image_size,
            boundary=config.train_from,
            seed=0,
        )

    classifier = nnx.eval_shape(build)
    _, parameters = make_functional(classifier)
    labels = label_parameters(parameters, config.train_from)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda backbone, x: dict(backbone.walk(x)), classifier.backbone, image)
    rows = []
    for layer in LAYERS:
        held = [path for path in parameters if path.startswith(f"backbone/{layer}/")]
        shape = outputs[layer].shape[1:]
        kernel = parameters[f"backbone/{layer}/kernel"].shape if held else ()
        rows.append(
            LayerSummary(
                layer=layer,
                keras_name=keras_name(layer),
                output_shape=shape,
                parameters=sum(parameters[path].size for path in held),
                trained=labels[held[0]] == "trained" if held else None,
                multiply_adds=math.prod(shape[:2]) * math.prod(kernel) if held else 0,
            )
        )
    rows.extend(_head_rows(parameters))
    trained = [row for row in rows if row.trained]
    return Summary(
        image_size=image_size,
        layers=rows,
        parameters=sum(row.parameters for row in rows),
        trained_parameters=sum(row.parameters for row in trained),
        multiply_adds=sum(row.multiply_adds or 0 for row in rows),
        trained_multiply_adds=sum(row.multiply_adds or 0 for row in trained),
    )


def _head_rows(parameters: dict[str, Any]) -> list[LayerSummary]:
    """One row for each module of the head that holds parameters.

    Output shape and multiply-adds are given for dense layers, whose kernels are `[in, out]`.
    """
    modules: dict[str, list[str]] = {}
    for path in parameters:
        if path.startswith("head/"):
            modules.setdefault(path.rpartition("/")[0], []).append(path)
    rows = []
    for module, paths in modules.items():
        kernels = [shape for path in paths if len(shape := parameters[path].shape) > 1]
        dense = all(len(shape) == 2 for shape in kernels)
        rows.append(
            LayerSummary(
                layer=module,
                keras_name="",
                output_shape=kernels[0][-1:] if kernels and dense else (),
                parameters=sum(parameters[path].size for path in paths),
                trained=True,
                multiply_adds=sum(math.prod(shape) for shape in kernels) if dense else None,
            )
        )
    return rows
