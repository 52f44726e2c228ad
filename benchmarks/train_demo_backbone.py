"""Train the small VGG16 of the demo and write it in Keras' published HDF5 layout.

    python benchmarks/train_demo_backbone.py OUT.h5
        [--pictures-per-class 820] [--epochs 7] [--seed 0]

The classes are those of `pretraining_pictures.py`, none of which is in the demo.
benchmarks/README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from pretraining_pictures import PATTERNS

from vgg_jax.demo.pictures import draw
from vgg_jax.layers import CONVOLUTIONS, keras_name
from vgg_jax.model.vgg16 import VGG16

WIDTH = 0.25
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 1e-3
TEST_PICTURES_PER_CLASS = 40


class Pretrained(nnx.Module):
    """The backbone, global average pooling, one dense layer."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Build it with random parameters."""
        self.backbone = VGG16(WIDTH, rngs=rngs)
        self.dense = nnx.Linear(int(512 * WIDTH), num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map uint8 `[B, H, W, 3]` to logits `[B, K]`."""
        return self.dense(self.backbone(self.backbone.normalise(images)).mean((1, 2)))


def draw_one(task: tuple[int, int, str, int]) -> np.ndarray:
    """Draw picture number `i` of a class; `task` is (seed, split number, class name, i)."""
    seed, split, name, i = task
    return draw(
        PATTERNS[name],
        np.random.default_rng([1_000_003, seed, split, list(PATTERNS).index(name), i]),
    )


def draw_set(seed: int, split: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` pictures of each class in parallel; returns uint8 images and int labels."""
    tasks = [(seed, split, name, i) for name in PATTERNS for i in range(count)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        images = np.stack(pool.map(draw_one, tasks, chunksize=64))
    return images, np.repeat(np.arange(len(PATTERNS)), count)


@nnx.jit(donate_argnums=(0, 1))
def train_step(
    model: Pretrained, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Take one step; returns the mean loss of the batch."""

    def mean_loss(model: Pretrained) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradients)
    return loss


def accuracy(model: Pretrained, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of pictures whose largest logit is that of their label."""
    predict = nnx.jit(lambda model, batch: model(batch).argmax(-1))
    guesses = [np.asarray(predict(model, batch)) for batch in np.split(images, len(images) // 40)]
    return float((np.concatenate(guesses) == labels).mean())


def write_keras_h5(path: Path, backbone: VGG16) -> None:
    """Write float16 arrays in the layout of Keras' published VGG16 file, conv1_1 taking BGR."""
    with h5py.File(path, "w") as file:
        names = []
        for name in CONVOLUTIONS:
            layer = keras_name(name)
            conv = getattr(backbone, name)
            kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
            if name == "conv1_1":
                kernel = kernel[:, :, ::-1]
            group = file.create_group(layer)
            arrays = {f"{layer}_W_1:0": kernel, f"{layer}_b_1:0": bias}
            for array_name, array in arrays.items():
                group.create_dataset(array_name, data=array.astype(np.float16))
            group.attrs["weight_names"] = [key.encode() for key in arrays]
            names.append(layer)
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["keras_version"] = b"1"
        file.attrs["backend"] = b"tensorflow"


def main() -> None:
    """Draw, train, test, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures-per-class", type=int, default=820)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.perf_counter()
    images, labels = draw_set(args.seed, 0, args.pictures_per_class)
    test_images, test_labels = draw_set(args.seed, 1, TEST_PICTURES_PER_CLASS)
    print(
        f"drew {len(images)} + {len(test_images)} pictures in {time.perf_counter() - start:.0f} s",
        flush=True,
    )

    model = Pretrained(len(PATTERNS), rngs=nnx.Rngs(args.seed))
    steps_per_epoch = len(images) // BATCH_SIZE
    total_steps = args.epochs * steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, PEAK_LEARNING_RATE, min(200, total_steps // 5), total_steps, end_value=1e-6
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(args.seed)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        order, losses = rng.permutation(len(images)), []
        for step in range(steps_per_epoch):
            chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            batch = images[chosen]
            if rng.integers(2):
                batch = batch[:, :, ::-1]
            if rng.integers(2):
                batch = batch[:, ::-1]
            losses.append(
                train_step(model, optimizer, jnp.asarray(batch), jnp.asarray(labels[chosen]))
            )
            if step % 50 == 49:
                print(
                    f"  step {step + 1} loss {float(jnp.stack(losses[-50:]).mean()):.3f}"
                    f" {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
        print(
            f"epoch {epoch + 1}: loss {float(jnp.stack(losses).mean()):.3f}, test accuracy"
            f" {accuracy(model, test_images, test_labels):.3f},"
            f" {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    write_keras_h5(args.out, model.backbone)
    print(
        json.dumps(
            {"seconds": round(time.perf_counter() - start), "bytes": args.out.stat().st_size}
        )
    )


if __name__ == "__main__":
    main()
