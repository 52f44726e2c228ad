"""Whole epochs of the recipe in vgg-jax and beside it: what the goals of speed are held against.

    python benchmarks/epochs.py --out FILE [--ours kept …] [--peers tensorflow …] [--dtypes …]
    python benchmarks/epochs.py --table FILE … [--most-others CORES]

Each training is a fresh process with a cache of its own, and adds a line of JSON to FILE when it is
done, so that pieces can be measured at different times. `--table` prints what they come to.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convert import CONVERT, Measured, measure, write_weights
from goals import in_words, tables

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
VGG_JAX = "from vgg_jax.cli.app import main; main()"
OUTSIDE = f"import sys; sys.path.insert(0, {str(HERE)!r}); import outside; outside.main()"
PEER = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"

Case = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ours:
    """A training by vgg-jax.

    Attributes:
        who: It is, in words.
        options: Beside the recipe's.
        epochs: To train.
        dtypes: Precisions in which it is measured.
    """

    who: str
    options: tuple[str, ...]
    epochs: int
    dtypes: tuple[str, ...] = ("float32",)


DTYPES = "float32", "bfloat16"
HEAD_ONLY = ("--train-from", "head", "--head")
OURS = {
    "kept": Ours("kept features", ("--features", "disk"), 4, DTYPES),
    "views": Ours("4 views of --augment keras", ("--views", "4", "--augment", "keras"), 10),
    "head-dense256": Ours("frozen up to the head, dense256", (*HEAD_ONLY, "dense256"), 6),
    "head-linear": Ours("frozen up to the head, linear", (*HEAD_ONLY, "linear"), 6),
    "fresh": Ours("features computed anew", ("--features", "off"), 2, DTYPES),
}


@dataclasses.dataclass(frozen=True)
class Peer:
    """The recipe in another program.

    Attributes:
        who: It is, in words.
        script: Among the peers.
        modules: That it needs.
        options: Of the script.
        epochs: To train.
        dtypes: It can be asked for.
    """

    who: str
    script: str
    modules: tuple[str, ...]
    options: tuple[str, ...] = ()
    epochs: int = 4
    dtypes: tuple[str, ...] = DTYPES


def _keras(who: str, backend: str, *options: str, **others: Any) -> Peer:
    modules = (backend, "keras", "h5py", "PIL", "scipy")
    return Peer(who, "keras_recipe.py", modules, ("--backend", backend, *options), **others)


PEERS = {
    "tensorflow": _keras("Keras on TensorFlow", "tensorflow"),
    "augmented": _keras(
        "Keras on TensorFlow, augmented", "tensorflow", "--augment", epochs=3, dtypes=("float32",)
    ),
    "jax": _keras("Keras on JAX", "jax"),
    "torch": _keras("Keras on PyTorch", "torch"),
    "pytorch": Peer("PyTorch, channels-last", "torch_recipe.py", ("torch", "PIL")),
}


def epochs(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Train in each way asked for, `args.rounds` times, and yield what it came to.

    Args:
        args: As `add_arguments` defines them.
        folder: For weights, runs and caches; the runs are `run-NAME`.
    """
    if not args.data.is_dir():
        return say(f"epochs: no {args.data}; name the photographs by --data or VGG_JAX_REAL_DATA.")
    h5, weights = None, args.weights
    if not weights:
        h5, weights = write_weights(folder / "notop.h5"), str(folder / "weights")
        if not Path(weights).exists():
            measure(CONVERT, h5, weights)
    measured_in = {name: ours.dtypes for name, ours in OURS.items()} | {"outside": ("float32",)}
    ours = [
        partial(_ours, args, folder, weights, name, dtype)
        for dtype in args.dtypes
        for name in args.ours
        if dtype in measured_in[name]
    ]
    for name in args.ours:
        if not {*args.dtypes} & {*measured_in[name]}:
            say(f"epochs: {name} is left out; it is measured in {', '.join(measured_in[name])}.")
    theirs = [
        partial(_peer, args, h5, name, dtype)
        for dtype in args.dtypes
        for name in args.peers
        if dtype in PEERS[name].dtypes
    ]
    # Ours and theirs alternate, so that the machine's changes of speed fall on both.
    pairs = list(itertools.zip_longest(ours, theirs))
    for training in itertools.chain.from_iterable(pairs * args.rounds):
        if training is None or (case := training()) is None:
            continue
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(case) + "\n")
        yield case


def _ours(args: argparse.Namespace, folder: Path, weights: str, name: str, dtype: str) -> Case:
    used = tempfile.mkdtemp(prefix=f"{name}-", dir=folder)
    cache = {"VGG_JAX_CACHE": f"{used}/cache"}  # else features would be found there, and programs
    if name == "outside":
        return _outside(args, weights, f"{used}/run", cache)
    ours, case_name = OURS[name], name if dtype == "float32" else f"{name}-{dtype}"
    run = folder / f"run-{case_name}"
    if run.exists():  # of an earlier round
        run = Path(used, "run")
    options = ("--data", args.data, "--weights", weights, "--run", run, *ours.options)
    arguments = (*options, "--precision", dtype, *_common(args, ours.epochs))
    measured = measure(VGG_JAX, "train", *arguments, environment=cache)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    who = f"vgg-jax, {ours.who}, {dtype}"
    return _case(args, case_name, who, measured, seconds_per_epoch=seconds)


def _outside(args: argparse.Namespace, weights: str, run: str, cache: Mapping[str, str]) -> Case:
    data, batch_size = str(args.data), args.batch_size
    options = {"data": data, "weights": weights, "batch_size": batch_size, "run": run}
    measured = measure(OUTSIDE, json.dumps({**options, "features": "disk"}), environment=cache)
    figures = json.loads(measured.output.splitlines()[-1])
    who = "vgg-jax, outside the compiled programs, kept features"
    return _case(args, "outside", who, measured, **figures)


def _peer(args: argparse.Namespace, h5: Path | None, name: str, dtype: str) -> Case | None:
    peer = PEERS[name]
    script = args.peer_folder / peer.script
    python = _python_with(peer.modules, (args.keras_python, args.torch_python))
    if python is None or not script.is_file():
        missing = script if python else f"Python that has {', '.join(peer.modules)}"
        say(f"epochs: {peer.who} is left out, since there is no {missing}; name it as --help says.")
        return None
    options = [*peer.options, *_common(args, peer.epochs)]
    if h5 and peer.script == "keras_recipe.py":
        options += ["--weights", h5]
    if dtype == "bfloat16":
        options.append("--bfloat16")
    measured = measure(PEER, script, args.data, *options, python=python)
    result = json.loads(measured.output.splitlines()[-1])
    case_name, who = f"{name}-{dtype}", f"{peer.who}, {dtype}"
    figures = {key: result[key] for key in ("peer", "seconds_per_epoch")}
    return _case(args, case_name, who, measured, **figures)


def _common(args: argparse.Namespace, count: int) -> tuple[str, ...]:
    count = min(count, args.most_epochs or count)
    return "--epochs", str(count), "--batch-size", str(args.batch_size)


def _python_with(modules: Sequence[str], pythons: Sequence[Path]) -> Path | None:
    """Return the first Python that has the modules."""
    probe = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {modules!r})))"
    for python in pythons:
        if python.is_file() and not subprocess.run([python, "-c", probe]).returncode:
            return python
    return None


def _case(
    args: argparse.Namespace, name: str, who: str, measured: Measured, **figures: Any
) -> Case:
    counts = [len(list((args.data / split).glob("*/*"))) for split in ("train", "validation")]
    return {
        "name": name,
        "who": who,
        "images": counts,
        "batch_size": args.batch_size,
        **figures,
        "process_seconds": round(measured.seconds, 1),
        "others_cores": measured.others_cores,
        "peak_mb": round(measured.peak_mb),
    }


def say(text: str) -> None:
    """Print a sentence that is not a figure."""
    print(text, file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what `epochs` wants to know."""
    real_data = Path(os.environ.get("VGG_JAX_REAL_DATA", SHARED / "data"))
    python = Path("bin", "python")
    parser.add_argument("--data", type=Path, default=real_data / "flowers5")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1, help="trainings of each, interleaved")
    ours = [*OURS, "outside"]
    parser.add_argument("--ours", nargs="*", choices=ours, default=ours)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[*PEERS])
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES], help="where there is a choice"
    )
    parser.add_argument("--out", type=Path, help="file to which a line of JSON a case is added")
    parser.add_argument("--weights", default="", help="other weights, for a try: random:0:0.0625")
    parser.add_argument("--most-epochs", type=int, help="fewer epochs, for a try")
    keras, torch = (HERE.parent / f".venv-{peer}" / python for peer in ("keras", "torch"))
    parser.add_argument("--keras-python", type=Path, default=keras, help="has Keras, TensorFlow")
    parser.add_argument("--torch-python", type=Path, default=torch, help="has PyTorch, Keras, too")
    recipes = SHARED / "peers"
    parser.add_argument("--peer-folder", type=Path, default=recipes, help="of the peers' scripts")


def main() -> None:
    """Measure, or print the tables of what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of such files")
    parser.add_argument(
        "--most-others", type=float, help="leave out what others kept more cores busy beside"
    )
    args = parser.parse_args()
    if args.table:
        lines = [line for path in args.table for line in path.read_text().splitlines()]
        print(tables([json.loads(line) for line in lines], args.most_others))
        return
    cases: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in epochs(args, Path(folder)):
            say(f"{case['who']}: {in_words(case)}")
            cases.append(case)
    print(tables(cases))


if __name__ == "__main__":
    main()
