"""What the epochs come to: ratios to Keras on TensorFlow in float32, against the goals."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

BASE, AUGMENTED = "tensorflow-float32", "augmented-float32"
Seconds = Callable[[Sequence[Sequence[float]]], float]


def first(rounds: Sequence[Sequence[float]]) -> float:
    """Return the seconds of epoch 1, the median of all rounds."""
    return statistics.median(seconds[0] for seconds in rounds)


def later(rounds: Sequence[Sequence[float]]) -> float:
    """Return the median seconds of the epochs after the first; of that, if there is no other."""
    return statistics.median(each for seconds in rounds for each in seconds[1:] or seconds)


def ten(rounds: Sequence[Sequence[float]]) -> float:
    """Return the seconds of ten epochs, the median of the rounds that had them; else infinite."""
    measured = [sum(seconds[:10]) for seconds in rounds if len(seconds) >= 10]
    return statistics.median(measured) if measured else math.inf


def ten_like_later(rounds: Sequence[Sequence[float]]) -> float:
    """Return ten times the seconds of a later epoch: what starts in the first is not counted."""
    return 10 * later(rounds)


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal of the time over that of Keras on TensorFlow.

    Attributes:
        what: Is measured.
        name: Of the case of ours.
        seconds: That count of ours.
        base: Case of Keras.
        base_seconds: That count of Keras'.
        most: Ratio.
    """

    what: str
    name: str
    seconds: Seconds
    base: str
    base_seconds: Seconds
    most: float


GOALS = (
    Goal("epochs 2… with kept features", "kept", later, BASE, later, 0.22),
    Goal("epoch 1, features being computed", "kept", first, BASE, later, 1.2),
    Goal("ten epochs, `--views 4` over augmented", "views", ten, AUGMENTED, ten_like_later, 0.5),
    Goal("`dense256` alone, epochs 2…", "head-dense256", later, BASE, later, 0.01),
    Goal("`linear` alone, epochs 2…", "head-linear", later, BASE, later, 0.01),
)
MOST_OUTSIDE = 0.05


def in_words(case: Mapping[str, Any]) -> str:
    """Return the figures of a case in words."""
    if "outside_share" in case:
        parts = [f"{label} {seconds:.3f}" for label, seconds in case["main_thread"].items()]
        return (
            f"{case['outside_share']:.1%} of an epoch of {case['epoch_wall_seconds']:.2f} s;"
            f" the main thread's seconds: {', '.join(parts)}"
        )
    rounds = [case["seconds_per_epoch"]]
    ms = 1000 * later(rounds) / sum(case["images"])
    return (
        f"first epoch {first(rounds):.1f} s, later {later(rounds):.2f} s ({ms:.1f} ms an image);"
        f" peak {case['peak_mb']} MB; others' cores {case['others_cores']}"
    )


def tables(cases: Iterable[Mapping[str, Any]], most_others: float | None = None) -> str:
    """Return what was measured, the goals and the profile in Markdown.

    Args:
        cases: As `epochs.epochs` yields them; those of one name are taken together.
        most_others: What was measured while others kept more cores busy is left out.
    """
    names: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases:
        if most_others is not None and case["others_cores"] > most_others:
            text = f"left out: {case['who']}, others' cores {case['others_cores']}"
            print(text, file=sys.stderr)
        else:
            names.setdefault(case["name"], []).append(case)
    of = {(tuple(case["images"]), case["batch_size"]) for each in names.values() for case in each}
    if len(of) > 1:
        sys.exit(f"These are not of the same pictures and batches: {sorted(of)}")
    trainings = {name: each for name, each in names.items() if name != "outside"}
    blocks = [_goals(names), *([_measured(trainings)] if trainings else [])]
    blocks += [_profile(case) for case in names.get("outside", [])]
    return "\n\n".join(blocks)


def _goals(names: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = []
    for goal in GOALS:
        if goal.name in names and goal.base in names:
            ours = goal.seconds(_rounds(names[goal.name]))
            theirs = goal.base_seconds(_rounds(names[goal.base]))
            ratio = ours / theirs
            figures = f"{ours:.2f} s", f"{theirs:.2f} s", f"{ratio:.3f}", f"<= {goal.most}"
            rows.append((goal.what, *figures, _met(ratio <= goal.most)))
        else:
            rows.append((goal.what, *["not measured"] * 3, f"<= {goal.most}", ""))
    if shares := [case["outside_share"] for case in names.get("outside", [])]:
        share, walls = (
            statistics.median(shares),
            [c["epoch_wall_seconds"] for c in names["outside"]],
        )
        what = "outside the compiled programs, share of an epoch with kept features"
        wall = f"{statistics.median(walls):.2f} s"
        met = _met(share <= MOST_OUTSIDE)
        rows.append((what, wall, "", f"{share:.1%}", f"<= {MOST_OUTSIDE:.0%}", met))
    return _markdown(("case", "vgg-jax", "Keras on TensorFlow", "ratio", "goal", "met"), rows)


def _measured(names: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    base = later(_rounds(names[BASE])) if BASE in names else None
    rows = []
    for cases in names.values():
        rounds = _rounds(cases)
        seconds = later(rounds)
        others = ", ".join(str(case["others_cores"]) for case in cases)
        rows.append(
            (
                cases[0]["who"],
                f"{first(rounds):.1f} s",
                f"{seconds:.2f} s",
                f"{1000 * seconds / sum(cases[0]['images']):.1f}",
                f"{seconds / base:.3f}" if base else "",
                f"{max(case['peak_mb'] for case in cases) / 1000:.2f} GB",
                others,
            )
        )
    heads = ("", "first epoch", "later epochs, median", "ms an image", "ratio", "peak memory")
    return _markdown((*heads, "others' cores"), rows)


def _profile(case: Mapping[str, Any]) -> str:
    wall = case["epoch_wall_seconds"]
    rows = [
        (label, f"{seconds:.3f} s", f"{seconds / wall:.1%}")
        for label, seconds in case["main_thread"].items()
    ]
    rows += [
        (f"program `{name}` alone, {found['calls']} calls", f"{found['seconds']:.3f} s", "")
        for name, found in case["programs"].items()
    ]
    return _markdown(("the main thread, an epoch", "seconds", "share"), rows)


def _rounds(cases: Sequence[Mapping[str, Any]]) -> list[Sequence[float]]:
    return [case["seconds_per_epoch"] for case in cases]


def _met(met: bool) -> str:
    return "yes" if met else "no"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
