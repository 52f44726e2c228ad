"""The cost of augmentation: chains of vgg-jax and the same recipe in Keras, one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from convert import measure

CHAINS = ("keras", "light", "strong")
BATCH, SIDE = 32, 224

# Prints the median of so many calls, a batch each, as milliseconds an image.
TIMING = f"""
import json, statistics, sys, time
import numpy as np
batch = np.random.default_rng(0).integers(0, 256, ({BATCH}, {SIDE}, {SIDE}, 3)).astype(np.uint8)
def time_it(call, repeats=9):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / {BATCH}
"""
OURS = (
    TIMING
    + """
import jax
from vgg_jax.augment.chain import build_chain
from vgg_jax.plugin_choices import parse_choice
images, found = jax.device_put(batch), {}
for text in sys.argv[1:]:
    chain = build_chain([parse_choice(choice) for choice in text.split()])
    apply = jax.jit(chain.apply)
    seeds = iter(range(1000))
    def call():
        keys = jax.random.split(jax.random.key(next(seeds)), len(images))
        apply(keys, images).block_until_ready()
    found[text] = time_it(call)
    if apply._cache_size() != 1:
        sys.exit(f"{text} was compiled {apply._cache_size()} times")
print(json.dumps(found))
"""
)
KERAS = (
    TIMING
    + """
import jax, keras
from keras.src.legacy.preprocessing.image import ImageDataGenerator
generator = ImageDataGenerator(
    rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.2,
    zoom_range=0.2, horizontal_flip=True, fill_mode="nearest", rescale=1 / 255,
)
pictures = batch.astype("float32")
def one_by_one():
    for picture in pictures:
        generator.standardize(generator.random_transform(picture))
layers = keras.layers
model = keras.Sequential([
    keras.Input(batch.shape[1:]),
    layers.Rescaling(1 / 255),
    layers.RandomRotation(40 / 360, fill_mode="nearest"),
    layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
    layers.RandomZoom((-0.2, 0.2), (-0.2, 0.2), fill_mode="nearest"),
    layers.RandomFlip("horizontal"),
])
step = jax.jit(lambda state, x: model.stateless_call([], state, x, training=True))
state = [[variable.value for variable in model.non_trainable_variables]]
def compiled():
    out, state[0] = step(state[0], pictures)
    out.block_until_ready()
print(json.dumps({"ImageDataGenerator": time_it(one_by_one), "layers": time_it(compiled)}))
"""
)


def augmentations(chains: Sequence[str], keras_python: Path) -> Iterator[dict[str, Any]]:
    """Yield milliseconds an image of each chain and, where Keras is at hand, of its ways.

    Args:
        chains: Augmentations as `--augment` takes them, with spaces between those of one chain.
        keras_python: A Python that has Keras, if it is there.
    """
    measured = measure(OURS, *chains)
    for chain, ms in json.loads(measured.output.splitlines()[-1]).items():
        yield _case(f"--augment {chain}", ms, measured.others_cores)
    if keras_python.is_file():
        measured = measure(KERAS, python=keras_python, environment={"KERAS_BACKEND": "jax"})
        for what, ms in json.loads(measured.output.splitlines()[-1]).items():
            yield _case(f"Keras, {what}", ms, measured.others_cores)


def _case(who: str, ms: float, others_cores: float) -> dict[str, Any]:
    return {"who": who, "ms_per_image": round(ms, 3), "others_cores": others_cores}
