"""Measure what a user waits for; benchmarks/README.md says what and records the figures.

    make bench
    python benchmarks/bench.py [--only epochs convert …] [--data DIR] [--keras-python PATH] …

Every figure is of fresh processes, one after another. Prints one line of JSON a case, then a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from augment import CHAINS, augmentations
from checkpoints import saving
from chunks import chunks, described
from convert import ENVIRONMENT, Measured, conversions, keeping_programs, measure
from convolutions import convolutions
from convolutions import described as in_all_ways
from epochs import VGG_JAX, add_arguments, epochs, say
from foresight import foreseen
from goals import in_words, tables
from smaller_features import compressing
from smaller_features import described as smaller
from store import reading

# Ends once the first step of a training on the demo's pictures is done.
FIRST_STEP = """
import os, sys
from vgg_jax import train
from vgg_jax.progress import Progress
class FirstStep(Progress):
    def step_done(self, *figures):
        report_peak()
        sys.stdout.flush()
        os._exit(0)
train(data="demo", epochs=1, run=sys.argv[1], progress=FirstStep())
"""
Row = tuple[str, str]


class Case(dict[str, Any]):
    """The figures of one case, with `rows` for the table kept out of the JSON."""

    def __init__(self, name: str, rows: list[Row], /, **figures: Any) -> None:
        """Name the case and hold its figures."""
        super().__init__(case=name, **figures)
        self.rows = rows


def help_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Time `vgg-jax --help`: the median of nine, after one to warm up."""
    del args, folder
    command = [Path(sys.executable).with_name("vgg-jax"), "--help"]
    times = []
    for _ in range(10):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
        times.append(time.perf_counter() - start)
    seconds = round(statistics.median(times[1:]), 3)
    yield Case("help", [("vgg-jax --help", f"{seconds} s")], seconds=seconds)


def convert_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Measure the conversions, and what they take beyond the imports of JAX, Flax and Orbax."""
    for case in conversions(folder, args.repeats):
        text = (
            f"{case['seconds']} s with proof, {case['seconds_beyond']} s beyond imports; loading"
            f" {case['seconds_load']} s;"
            f" peak {case['peak_mb']} MB, {case['peak_beyond_per_file']} times the file beyond them"
        )
        yield Case("convert", [(f"convert-weights, {case['file_mb']} MB", text)], **case)


def epochs_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Train the recipe in every way, and beside Keras and PyTorch."""
    cases = []
    for case in epochs(args, folder):
        cases.append(case)
        yield Case("epochs", [(case["who"], in_words(case))], **case)
    if cases:
        say(f"\n{tables(cases)}\n")


def chunks_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Compare steps one by one with several in a program, and candidates in turn with vmapped."""
    del folder
    for case in chunks(args.weights or "random:0", args.batch_sizes, args.image_size):
        yield Case("chunks", [(f"{case['who']}: {case['what']}", described(case))], **case)


def convolutions_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Compare plain convolutions with those that trainings on a CPU take: frozen layers, steps."""
    del folder
    for case in convolutions(args.weights or "random:0"):
        yield Case("convolutions", [(case["who"], in_all_ways(case))], **case)


def predict_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Measure the prediction of one picture by a run of `epochs`, programs being kept."""
    runs_there = filter(Path.is_dir, (folder / f"run-{name}" for name in ("fresh", "kept")))
    run = next(runs_there, None)
    if run is None:
        return say("predict: there is no run to predict with; measure `epochs` with it.")
    picture = next(args.data.glob("test/*/*"))
    kept = keeping_programs(folder / "predict-cache")
    measure(VGG_JAX, "predict", run, picture, environment=kept)
    imports, runs = [], []
    for _ in range(args.repeats):
        imports.append(measure("import flax.nnx, orbax.checkpoint"))
        runs.append(measure(VGG_JAX, "predict", run, picture, environment=kept))
    bare, typical = middle(imports), middle(runs)
    beyond = typical.seconds - bare.seconds
    text = f"{typical.seconds:.2f} s, {beyond:.2f} s beyond imports; peak {typical.peak_mb:.0f} MB"
    yield Case(
        "predict",
        [("predict, one picture", text)],
        seconds=round(typical.seconds, 2),
        seconds_imports=round(bare.seconds, 2),
        seconds_beyond=round(beyond, 2),
        others_cores=typical.others_cores,
        peak_mb=round(typical.peak_mb),
        peak_mb_imports=round(bare.peak_mb),
    )


def start_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Time a training on the demo's pictures until its first step, without and with programs."""
    kept = keeping_programs(folder / "start-cache")
    measure(FIRST_STEP, folder / "start", environment=kept)  # which draws the pictures, too
    times: dict[str, list[float]] = {"compiling": [], "programs kept": []}
    for i in range(args.repeats):
        for what, seconds in times.items():
            off = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if what == "compiling" else {}
            run = folder / f"start-{what}-{i}"
            seconds.append(measure(FIRST_STEP, run, environment=kept | off).seconds)
    for what, seconds in times.items():
        typical = round(statistics.median(seconds), 2)
        rows = [(f"training on the demo, first step, {what}", f"{typical} s")]
        yield Case("start", rows, who=what, seconds=typical)


def middle(measured: list[Measured]) -> Measured:
    """Return the process that took the median of the seconds."""
    return sorted(measured)[len(measured) // 2]


def augment_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Time chains of augmentations, and Keras' ways to do what `--augment keras` does."""
    del folder
    for case in augmentations(args.chains, args.keras_python):
        rows = [(f"augmenting, {case['who']}", f"{case['ms_per_image']} ms an image")]
        yield Case("augment", rows, **case)


def checkpoints_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Measure what saving costs the recipe's training, and how soon it goes on."""
    if not args.data.is_dir():
        return say(f"checkpoints: no {args.data}; name the photographs by --data.")
    for case in saving(folder, args.data, args.batch_size):
        if case["who"] == "resume":
            text = (
                f"{case['seconds_to_first_batch']} s to the first batch,"
                f" {case['seconds_to_first_step_saved']} s to the first step, saved"
            )
        else:
            text = (
                f"{case['checkpoint_mb']} MB; the loop waits {case['held_seconds_each']} s for"
                f" each, {case['held_share_of_epoch']:.2%} of an epoch of {case['epoch_seconds']} s"
            )
        yield Case("checkpoints", [(f"checkpoints, {case['who']}", text)], **case)


def plan_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Hold what `vgg-jax plan` foresees against the training that follows."""
    if not args.data.is_dir():
        return say(f"plan: no {args.data}; name the photographs by --data.")
    for case in foreseen(folder, args.data, args.batch_size):
        ratios = ", ".join(f"{ratio:.2f}" for ratio in case["expected_over_taken"])
        text = (
            f"expected over taken: {case['all_expected_over_taken']:.2f}, the first ones {ratios},"
            f" the last over the median of its like {case['last_expected_over_median']:.2f};"
            f" planned in {case['seconds_planning']} s"
        )
        yield Case("plan", [(f"plan, {case['who']}", text)], **case)


def store_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Measure how fast kept features are read, beside sequential reading."""
    del args
    for case in reading(folder):
        names = [name for name in case if name.endswith("_mb_per_s")]
        rows = [
            (f"store, {name.removesuffix('_mb_per_s').replace('_', ' ')}", f"{case[name]} MB/s")
            for name in names
        ]
        yield Case("store", rows, **case)


def compression_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Measure what compressing kept features would save, and what it would cost."""
    del folder
    if not args.data.is_dir():
        return say(f"compression: no {args.data}; name the photographs by --data.")
    for case in compressing(args.weights or "random:0", args.data):
        yield Case("compression", [(f"features, {case['who']}", smaller(case))], **case)


CASES = {
    "augment": augment_case,
    "help": help_case,
    "convert": convert_case,
    "epochs": epochs_case,
    "predict": predict_case,
    "start": start_case,
    "plan": plan_case,
    "checkpoints": checkpoints_case,
    "store": store_case,
    "compression": compression_case,
    "chunks": chunks_case,
    "convolutions": convolutions_case,
}


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--chains", nargs="+", default=CHAINS, help="of augment, such as: randaugment"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of start, predict, convert")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20, 32], help="of chunks")
    parser.add_argument("--image-size", type=int, default=224, help="of chunks")
    add_arguments(parser)
    args = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            for case in CASES[name](args, Path(folder)):
                print(json.dumps(case), flush=True)
                cases.append(case)
    rows = [row for case in cases for row in case.rows]
    width = max((len(what) for what, _ in rows), default=0)
    print()
    for what, figure in rows:
        print(f"{what:{width}}  {figure}")


if __name__ == "__main__":
    main()
