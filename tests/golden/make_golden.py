"""Write what the real Keras computes, for tests to compare with.

Needs keras, numpy and h5py only:

    KERAS_BACKEND=jax python tests/golden/make_golden.py
    KERAS_BACKEND=jax python tests/golden/make_golden.py --full OUT_DIR    for the slow test

Weights are `keras_arrays(width, seed)` of tests/weight_files.py, which a test can draw again: from
`numpy.random.default_rng(seed)`, for each layer in order the kernel,
`standard_normal(shape, float32)` times sqrt(2 / (9 * in)) (the first layer's divided by 64 more),
then the bias, 0.05 times `standard_normal(out)`. What is written:

    narrow_legacy.h5       width 1/16, seed NARROW_SEED, no top, by Keras' own legacy writer
    narrow_blocks.npz      images, uint8 RGB [2, 32, 32, 3], and Keras' outputs for them,
                           block1_pool to block5_pool
    full_width_blocks.npz  the same of keras.applications.VGG16 at seed FULL_SEED, [1, 32, 32, 3]
    recipe_steps.npz       the fine-tuning recipe on the narrow network, 10 steps: images
                           [10, 4, 32, 32, 3], labels [10, 4]; dense_kernel, dense_bias,
                           predictions_kernel, predictions_bias at the start; losses_categorical,
                           losses_binary, losses_smoothed [10], each from the same start; and
                           after/<layer>_<kernel or bias> of all that is trained, after the 10
                           categorical steps
"""

# pyright: reportMissingImports=false, reportArgumentType=false

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
from keras.src.legacy.saving import legacy_h5_format

sys.path.insert(0, str(Path(__file__).parent.parent))

from weight_files import CONVOLUTIONS_PER_BLOCK, Arrays, keras_arrays

HERE = Path(__file__).parent
NARROW_WIDTH, NARROW_SEED = 1 / 16, 7
FULL_SEED = 2014
IMAGES_SEED = 1409
CLASSES, STEPS, BATCH_SIZE = 3, 10, 4
POOLS = [f"block{block}_pool" for block in range(1, 6)]


def narrow_network() -> keras.Model:
    """Build the narrow VGG16 with the layer names of `keras.applications.VGG16`."""
    inputs = x = keras.Input((32, 32, 3), name="input_layer")
    arrays = keras_arrays(NARROW_WIDTH, NARROW_SEED)
    for block, count in enumerate(CONVOLUTIONS_PER_BLOCK, start=1):
        for i in range(1, count + 1):
            name = f"block{block}_conv{i}"
            channels = arrays[name][1].size
            x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name=name)(x)
        x = keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    model = keras.Model(inputs, x)
    set_arrays(model, arrays)
    return model


def set_arrays(model: keras.Model, arrays: Arrays) -> None:
    """Set kernel and bias of each named layer."""
    for name, pair in arrays.items():
        model.get_layer(name).set_weights(pair)


def preprocess(images: np.ndarray) -> np.ndarray:
    """Do to uint8 RGB what `keras.applications.vgg16` asks for."""
    return keras.applications.vgg16.preprocess_input(images.astype("float32"))


def draw_images(*shape: int) -> np.ndarray:
    """Draw uint8 RGB images of independent pixels."""
    return np.random.default_rng(IMAGES_SEED).integers(0, 256, (*shape, 3)).astype(np.uint8)


def pool_outputs(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the images and Keras' output of each block for them."""
    probe = keras.Model(model.input, [model.get_layer(name).output for name in POOLS])
    outputs = probe.predict(preprocess(images), verbose=0)
    return {"images": images, **dict(zip(POOLS, outputs, strict=True))}


def write_legacy(path: Path, model: keras.Model) -> None:
    """Write weights as Keras' legacy writer does."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def recipe_losses(
    loss: keras.losses.Loss, start: Arrays, images: np.ndarray, labels: np.ndarray
) -> tuple[list[float], keras.Model]:
    """Train for one step a batch from the same start; returns the losses and the trained model."""
    base = narrow_network()
    trained = False
    for layer in base.layers:
        trained = trained or layer.name == "block5_conv1"
        layer.trainable = trained
    x = keras.layers.Flatten()(base.output)
    x = keras.layers.Dense(256, activation="relu", name="dense")(x)
    x = keras.layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    model = keras.Model(base.input, x)
    set_arrays(model, start)
    model.compile(loss=loss, optimizer=keras.optimizers.RMSprop(learning_rate=1e-4))
    losses = []
    for batch, answers in zip(images, labels, strict=True):
        model.reset_metrics()  # or train_on_batch returns the mean of all steps so far
        losses.append(float(model.train_on_batch(preprocess(batch), np.eye(CLASSES)[answers])))
    return losses, model


def recipe_steps() -> dict[str, np.ndarray]:
    """Run the recipe with each loss."""
    rng = np.random.default_rng(IMAGES_SEED + 1)
    squares = rng.integers(0, 256, (STEPS, BATCH_SIZE, 8, 8, 3)).astype(np.uint8)
    images = squares.repeat(4, axis=2).repeat(4, axis=3)  # compresses well
    labels = rng.integers(0, CLASSES, (STEPS, BATCH_SIZE))
    start: Arrays = {}
    for name, (units_in, units_out) in {"dense": (32, 256), "predictions": (256, CLASSES)}.items():
        kernel = rng.standard_normal((units_in, units_out), np.float32) / np.float32(units_in**0.5)
        start[name] = kernel, 0.05 * rng.standard_normal(units_out, np.float32)
    losses = {
        "categorical": keras.losses.CategoricalCrossentropy(),
        "binary": keras.losses.BinaryCrossentropy(),
        "smoothed": keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
    }
    results: dict[str, np.ndarray] = {"images": images, "labels": labels}
    for name, pair in start.items():
        results |= {f"{name}_{role}": a for role, a in zip(("kernel", "bias"), pair, strict=True)}
    for key, loss in losses.items():
        values, model = recipe_losses(loss, start, images, labels)
        results[f"losses_{key}"] = np.asarray(values)
        print(key, np.round(values, 4))
        if key == "categorical":
            for layer in model.layers:
                if layer.trainable and layer.get_weights():
                    kernel, bias = layer.get_weights()
                    results[f"after/{layer.name}_kernel"] = kernel
                    results[f"after/{layer.name}_bias"] = bias
    return results


def full_network(size: int) -> keras.Model:
    """Build `keras.applications.VGG16` with seeded weights."""
    model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(size, size, 3))
    set_arrays(model, keras_arrays(1.0, FULL_SEED))
    return model


def main() -> None:
    """Write the small files, or those of the slow test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", type=Path, metavar="OUT_DIR")
    args = parser.parse_args()
    if args.full:
        args.full.mkdir(parents=True, exist_ok=True)
        model = full_network(224)
        write_legacy(args.full / "full_legacy.h5", model)
        np.savez(args.full / "full_blocks.npz", **pool_outputs(model, draw_images(2, 224, 224)))
        return
    narrow = narrow_network()
    write_legacy(HERE / "narrow_legacy.h5", narrow)
    np.savez_compressed(HERE / "narrow_blocks.npz", **pool_outputs(narrow, draw_images(2, 32, 32)))
    full = pool_outputs(full_network(32), draw_images(1, 32, 32))
    np.savez_compressed(HERE / "full_width_blocks.npz", **full)
    np.savez_compressed(HERE / "recipe_steps.npz", **recipe_steps())


if __name__ == "__main__":
    main()
