"""Plain convolutions, and those of trainings on a CPU, in both precisions: steps, frozen layers.

Run by bench.py: all frozen layers in one process, each training in one of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from chunks import Part, Trial, timed
from convert import measure

HERE = Path(__file__).parent
RUN = f"import sys; sys.path.insert(0, {str(HERE)!r}); import convolutions; convolutions.%s()"
Way = Callable[[Any, Any], Any]  # from a network and images to features
IMAGE_SIZE, BATCH_SIZE, REPEATS = 224, 20, 9  # of the frozen layers
# Plain ones, and those of trainings on a CPU in either precision.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"precision": "float32", "on_one_cpu": False},
    "float32": {"precision": "float32", "on_one_cpu": True},
    "bfloat16": {"precision": "bfloat16", "on_one_cpu": True},
}
# Where the training begins, batch size, image size.
CASES = (
    ("conv5_1", 20, 224),
    ("conv5_1", 20, 96),
    ("conv5_1", 20, 32),
    ("conv4_1", 8, 224),
    ("conv2_1", 8, 224),
    ("conv1_1", 4, 224),
)


def convolutions(weights: str) -> Iterator[dict[str, Any]]:
    """Yield milliseconds of frozen layers and of steps, in each way, in each case."""
    measured = measure(RUN % "measure_frozen", weights)
    for case in json.loads(measured.output.splitlines()[-1]):
        yield {**case, "others_cores": measured.others_cores}
    for boundary, batch_size, image_size in CASES:
        measured = measure(
            RUN % "measure_steps", weights, boundary, str(batch_size), str(image_size)
        )
        figures = json.loads(measured.output.splitlines()[-1])
        who = f"dense256 from {boundary}, batch {batch_size}, {image_size} x {image_size}"
        yield {"who": who, **figures, "others_cores": measured.others_cores}


def described(case: Mapping[str, Any]) -> str:
    """Return the figures of a case in words."""
    units = {"forward": "ms an image", "train": "ms", "evaluate": "ms"}
    units |= {"memory": "MB", "compile_seconds": "s"}
    texts = [
        f"{what.removesuffix('_seconds')} {', '.join(f'{n} {v}' for n, v in case[what].items())}"
        f" {unit}"
        for what, unit in units.items()
        if what in case
    ]
    return "; ".join(texts)


def measure_frozen() -> None:
    """Measure layers alone, and all before conv5_1, in pieces; print them as JSON."""
    import jax
    import numpy as np

    from vgg_jax.heap import keep_freed_memory
    from vgg_jax.layers import LAYERS
    from vgg_jax.model.arithmetic import multiplies_bfloat16, set_arithmetic
    from vgg_jax.model.convolution import convolve_3x3
    from vgg_jax.model.pieces import map_in_pieces, run_piece
    from vgg_jax.workflows.backbone import open_backbone

    keep_freed_memory()  # as the commands do
    (weights,) = sys.argv[1:]
    backbone = open_backbone(weights).backbone
    rng = np.random.default_rng(0)
    shape = BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3
    images = jax.device_put(rng.integers(0, 256, shape, np.uint8))

    def run_all(network: Any, images: Any, *, precision: Any, on_one_cpu: bool) -> Any:
        set_arithmetic(network, precision, on_one_cpu=on_one_cpu, gradient=False)
        return map_in_pieces(lambda few: run_piece(network, few, precision, "conv5_1"), images)

    def run_fours(network: Any, images: Any) -> Any:
        set_arithmetic(network, "bfloat16", on_one_cpu=True, gradient=False)
        return map_in_pieces(
            lambda few: network.run(network.normalise(few), stop="conv5_1"), images
        )

    ways: dict[str, Way] = {name: partial(run_all, **way) for name, way in WAYS.items()}
    ways["bfloat16, all in fours"] = run_fours
    cases = [forward(backbone, images, "all before conv5_1", ways)]

    def run_layer(network: Any, images: Any, *, layer: str, stop: str, convolve: Any) -> Any:
        network.set_attributes(conv_general_dilated=convolve)
        return map_in_pieces(partial(network.run, start=layer, stop=stop), images)

    as_float32 = not multiplies_bfloat16()
    rounded = partial(convolve_3x3, products="bfloat16", as_float32=as_float32)
    convolves = {
        "plain": jax.lax.conv_general_dilated,
        "float32": convolve_3x3,
        "bfloat16": rounded,
        "bfloat16 in one product": partial(rounded, least_together=sys.maxsize),
    }
    given, following = backbone.normalise(images), dict(itertools.pairwise(LAYERS))
    for name, output in backbone.walk(given, stop="conv5_1"):
        if name.startswith("conv") and name != "conv1_1":  # which has too few channels
            ways = {
                way: partial(run_layer, layer=name, stop=following[name], convolve=convolve)
                for way, convolve in convolves.items()
            }
            cases.append(forward(backbone, given, name, ways))
        given = output
    print(json.dumps(cases))


def forward(backbone: Any, images: Any, who: str, ways: Mapping[str, Way]) -> dict[str, Any]:
    """Measure ways in which a network may take images."""
    import jax
    from flax import nnx

    graph, parameters = nnx.split(backbone)
    calls, memory, seconds = {}, {}, {}
    for name, way in ways.items():

        @jax.jit
        def run(parameters: Any, images: Any, way: Any = way) -> Any:
            return way(nnx.merge(graph, parameters), images)

        begun = time.perf_counter()
        program = run.lower(parameters, images).compile()
        seconds[name] = round(time.perf_counter() - begun, 1)
        analysis: Any = program.memory_analysis()
        memory[name] = round(analysis.temp_size_in_bytes / 1e6)

        def call(parameters: Any, images: Any, *_: Any, program: Any = program) -> Any:
            return parameters, images, program(parameters, images)

        calls[name] = call, (parameters, images)
    ms = timed(calls, REPEATS)
    return {
        "who": f"forward, {who}",
        "forward": {name: round(value / BATCH_SIZE, 1) for name, value in ms.items()},
        "memory": memory,
        "compile_seconds": seconds,
    }


def measure_steps() -> None:
    """Measure the case that the arguments name, and print it as JSON."""
    from vgg_jax.heap import keep_freed_memory

    keep_freed_memory()  # as the commands do
    weights, boundary, batch_size, image_size = sys.argv[1:]
    part = Part("dense256", boundary, steps=1)
    trial = Trial(part, weights, int(batch_size), int(image_size))
    (inputs,) = trial.batches
    ways = {name: dataclasses.replace(trial.steps, **way) for name, way in WAYS.items()}
    memory, seconds = {}, {}
    for name, steps in ways.items():
        begun = time.perf_counter()
        program = steps.train.lower(steps, trial.state, trial.totals, inputs).compile()
        seconds[name] = round(time.perf_counter() - begun, 1)
        analysis: Any = program.memory_analysis()
        memory[name] = round(analysis.temp_size_in_bytes / 1e6)

    def trains(steps: Any) -> Any:
        return lambda state, totals: steps.train(state, totals, inputs)

    def evaluates(steps: Any) -> Any:
        return lambda state, _: (state, steps.evaluate(state.trained, inputs))

    start = (trial.state, trial.totals)
    figures = {
        what: timed({name: (call(steps), start) for name, steps in ways.items()}, part.repeats)
        for what, call in (("evaluate", evaluates), ("train", trains))
    }
    rounded = {
        what: {name: round(ms, 1) for name, ms in by_name.items()}
        for what, by_name in figures.items()
    }
    print(json.dumps(rounded | {"memory": memory, "compile_seconds": seconds}))
