"""Writes small VGG16 models with the real Keras, in each layout that it has, and their outputs.

    python make_sources_golden.py [OUT_DIR]

Needs keras with a backend, and h5py; made with Keras 3.15.1 on JAX (KERAS_BACKEND=jax). Each model
has width 1/32 and seeded weights; `outputs.npz` holds a batch of RGB images, uint8, and what Keras
gives for it after `preprocess_input`, by the model's name.

`backbone`     VGG16 without its top
`classifier`   the recipe: Sequential of a nested VGG16 frozen to block5_conv1, flatten, dense 256,
               dropout, dense 3 with softmax
`binary`       VGG16 and head in one functional model: averaged features, one sigmoid
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import layers
from keras.src.legacy.saving import legacy_h5_format

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "sources"
BLOCKS = ((2, 2), (2, 4), (3, 8), (3, 16), (3, 16))  # convolutions, channels


def build_vgg16(name: str) -> keras.Model:
    inputs = x = keras.Input((64, 64, 3))
    for block, (count, channels) in enumerate(BLOCKS, start=1):
        for i in range(1, count + 1):
            x = layers.Conv2D(
                channels, 3, padding="same", activation="relu", name=f"block{block}_conv{i}"
            )(x)
        x = layers.MaxPooling2D(2, strides=2, name=f"block{block}_pool")(x)
    return keras.Model(inputs, x, name=name)


def draw_weights(model: keras.Model, rng: np.random.Generator) -> None:
    """He normal kernels; the biases keep layers of few channels alive."""
    drawn = []
    for array in model.get_weights():
        if array.ndim == 1:
            drawn.append(rng.uniform(0.0, 0.4, array.shape))
            continue
        scale = np.sqrt(2 / np.prod(array.shape[:-1]))
        if array.shape[2:3] == (3,) or (array.shape[-1] <= 3 and array.ndim == 2):
            scale /= 64  # inputs span about 256; and no class is certain
        drawn.append(rng.normal(0.0, scale, array.shape))
    model.set_weights(drawn)


def build_classifier() -> keras.Model:
    base = build_vgg16("vgg16")
    for layer in base.layers:  # as the recipe freezes: it changes the order in legacy files
        layer.trainable = layer.name.startswith("block5")
    return keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            base,
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )


def build_binary() -> keras.Model:
    base = build_vgg16("vgg16_binary")
    pooled = layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, layers.Dense(1, activation="sigmoid", name="is_cat")(pooled))


def main() -> None:
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3)).astype("float32")
    outputs = {"images": images.astype("uint8")}
    models = {
        "backbone": build_vgg16("vgg16_backbone"),
        "classifier": build_classifier(),
        "binary": build_binary(),
    }
    for name, model in models.items():
        draw_weights(model, rng)
        outputs[name] = model(keras.applications.vgg16.preprocess_input(images.copy()))
        with h5py.File(OUT / f"{name}_legacy.h5", "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
        model.save_weights(OUT / f"{name}.weights.h5")
        model.save(OUT / f"{name}.h5")
        model.save(OUT / f"{name}.keras")
    np.savez_compressed(OUT / "outputs.npz", **{k: np.asarray(v) for k, v in outputs.items()})


main()
