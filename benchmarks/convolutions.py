"""Steps with plain convolutions, and with Winograd's, which trainings on a CPU take.

Run by bench.py, a case in a process of its own; the arguments say which.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chunks import Part, Trial, timed
from convert import measure

HERE = Path(__file__).parent
RUN = f"import sys; sys.path.insert(0, {str(HERE)!r}); import convolutions; convolutions.main()"
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
    """Yield milliseconds of a step of training and of evaluation, in both ways, in each case."""
    for boundary, batch_size, image_size in CASES:
        measured = measure(RUN, weights, boundary, str(batch_size), str(image_size))
        figures = json.loads(measured.output.splitlines()[-1])
        who = f"dense256 from {boundary}, batch {batch_size}, {image_size} x {image_size}"
        yield {"who": who, **figures, "others_cores": measured.others_cores}


def described(case: Mapping[str, Any]) -> str:
    """Return the figures of a case in words."""
    texts = [
        f"{what} {case[what]['plain']} -> {case[what]['winograd']}{unit}"
        for what, unit in (("train", " ms"), ("evaluate", " ms"), ("memory", " MB"))
    ]
    compiling = case["compile_seconds"]
    return f"{', '.join(texts)}, compiling {compiling['plain']} -> {compiling['winograd']} s"


def main() -> None:
    """Measure the case that the arguments name, and print it as JSON."""
    from vgg_jax.heap import keep_freed_memory

    keep_freed_memory()  # as the commands do
    weights, boundary, batch_size, image_size = sys.argv[1:]
    part = Part("dense256", boundary, steps=1)
    trial = Trial(part, weights, int(batch_size), int(image_size))
    (inputs,) = trial.batches
    ways = {
        name: dataclasses.replace(trial.steps, on_one_cpu=fast)
        for name, fast in (("plain", False), ("winograd", True))
    }
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
