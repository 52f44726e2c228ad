"""Measure what a user waits for; benchmarks/README.md says what and records the figures.

    make bench
    python benchmarks/bench.py [--only train convert …] [--data DIR] [--keras-python PATH] …

Every figure is of fresh processes, one after another. Prints one line of JSON a case, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
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
from convert import CONVERT, ENVIRONMENT, Measured, conversions, measure, write_weights
from store import reading

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
VGG_JAX = "from vgg_jax.cli.app import main; main()"
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
PEER = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
Row = tuple[str, str]


class Case(dict[str, Any]):
    """The figures of one case, with `rows` for the table kept out of the JSON."""

    def __init__(self, name: str, rows: list[Row], **figures: Any) -> None:
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


def train_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Time epochs of vgg-jax and of Keras on each of its backends, interleaved."""
    if not args.data.is_dir():
        return say(f"train: no {args.data}; name the photographs by --data or VGG_JAX_REAL_DATA.")
    images = sum(len(list((args.data / s).glob("*/*"))) for s in ("train", "validation"))
    h5 = write_weights(folder / "notop.h5")
    measure(CONVERT, h5, folder / "weights")
    common = ("--epochs", str(args.epochs), "--batch-size", str(args.batch_size))
    backends = keras_backends(args)
    for i in range(args.rounds):
        run = folder / f"run-{i}"
        ours = ("--data", args.data, "--weights", folder / "weights", "--run", run)
        measured = measure(VGG_JAX, "train", *ours, *common)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["seconds"] for line in lines]
        yield training("vgg-jax", seconds, measured, images)
        for backend in backends:
            theirs = (args.peer, args.data, "--weights", h5, "--backend", backend)
            measured = measure(PEER, *theirs, *common, python=args.keras_python)
            result = json.loads(measured.output.splitlines()[-1])
            yield training(result["peer"], result["seconds_per_epoch"], measured, images)


def training(who: str, seconds: list[float], measured: Measured, images: int) -> Case:
    """Return the case of one training; later epochs are those without compilation."""
    later = statistics.mean(seconds[1:] or seconds)
    text = (
        f"first epoch {seconds[0]:.1f} s, later {later:.1f} s"
        f" ({1000 * later / images:.0f} ms an image); peak {measured.peak_mb:.0f} MB"
    )
    return Case(
        "train",
        [(f"training, {who}", text)],
        who=who,
        seconds_per_epoch=[round(value, 2) for value in seconds],
        ms_per_image=round(1000 * later / images, 1),
        others_cores=measured.others_cores,
        peak_mb=round(measured.peak_mb),
    )


def keras_backends(args: argparse.Namespace) -> list[str]:
    """Return the backends that can be compared with; say why where there are none."""
    for path, what in ((args.keras_python, "--keras-python"), (args.peer, "--peer")):
        if not path.is_file():
            say(f"train: Keras is left out, since there is no {path}; name one by {what}.")
            return []
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('tensorflow') is None)"
    tensorflow = subprocess.run([args.keras_python, "-c", probe]).returncode == 0
    return ["jax", "tensorflow"] if tensorflow else ["jax"]


def predict_case(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Measure the prediction of one picture by the run that `train` left, programs being kept."""
    run = folder / "run-0"
    if not run.is_dir():
        return say("predict: there is no run to predict with; measure `train` with it.")
    picture = next(args.data.glob("test/*/*"))
    kept = keeping_programs(folder / "predict-cache")
    measure(VGG_JAX, "predict", run, picture, environment=kept)
    imports, runs = [], []
    for _ in range(args.repeats):
        imports.append(measure("import flax.nnx, orbax.checkpoint"))
        runs.append(measure(VGG_JAX, "predict", run, picture, environment=kept))
    least, best = min(imports), min(runs)
    beyond = best.seconds - least.seconds
    text = f"{best.seconds:.2f} s, {beyond:.2f} s beyond imports; peak {best.peak_mb:.0f} MB"
    yield Case(
        "predict",
        [("predict, one picture", text)],
        seconds=round(best.seconds, 2),
        seconds_imports=round(least.seconds, 2),
        seconds_beyond=round(beyond, 2),
        others_cores=best.others_cores,
        peak_mb=round(best.peak_mb),
        peak_mb_imports=round(least.peak_mb),
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
        least = round(min(seconds), 2)
        rows = [(f"training on the demo, first step, {what}", f"{least} s")]
        yield Case("start", rows, who=what, seconds=least)


def keeping_programs(cache: Path) -> dict[str, str]:
    """Return the environment of processes that share compiled programs in a cache folder."""
    return {"JAX_ENABLE_COMPILATION_CACHE": "true", "VGG_JAX_CACHE": str(cache)}


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


CASES = {
    "augment": augment_case,
    "help": help_case,
    "convert": convert_case,
    "train": train_case,
    "predict": predict_case,
    "start": start_case,
    "checkpoints": checkpoints_case,
    "store": store_case,
}


def ratios(cases: list[Case]) -> Iterator[Row]:
    """Yield how long an epoch of vgg-jax takes, compilation left out, over each peer's."""
    times: dict[str, list[float]] = {}
    for case in cases:
        if case["case"] == "train":
            times.setdefault(case["who"], []).append(case["ms_per_image"])
    ours = times.pop("vgg-jax", [])
    for peer, theirs in times.items():
        ratio = statistics.mean(ours) / statistics.mean(theirs)
        yield f"vgg-jax over {peer}", f"{ratio:.2f} of the time"


def say(text: str) -> None:
    """Print a sentence that is not a figure."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure the cases asked for."""
    real_data = Path(os.environ.get("VGG_JAX_REAL_DATA", SHARED / "data"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--chains", nargs="+", default=CHAINS, help="of augment, such as: randaugment"
    )
    parser.add_argument("--data", type=Path, default=real_data / "flowers5")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1, help="trainings of each, interleaved")
    parser.add_argument("--repeats", type=int, default=3, help="of the rest, the fastest counts")
    parser.add_argument(
        "--keras-python", type=Path, default=HERE.parent / ".venv-keras" / "bin" / "python"
    )
    parser.add_argument("--peer", type=Path, default=SHARED / "peers" / "keras_recipe.py")
    args = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            for case in CASES[name](args, Path(folder)):
                print(json.dumps(case), flush=True)
                cases.append(case)
    rows = [row for case in cases for row in case.rows] + list(ratios(cases))
    width = max((len(what) for what, _ in rows), default=0)
    print()
    for what, figure in rows:
        print(f"{what:{width}}  {figure}")


if __name__ == "__main__":
    main()
