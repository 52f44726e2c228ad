"""No weight file, however damaged or hostile, does more than end in a clear error.

Run as a program, this prints a table of what came of each kind of file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import resource
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fuzz_files import Case, cases, write_canaries
from fuzz_reader import ReaderServer, Reading
from hostile_archives import OUTSIDE

from vgg_jax.errors import WeightsError
from vgg_jax.weights.reading import child_environment, read_weight_file

MANY = 2800
MOST_SECONDS, MOST_BYTES = 2, 10**9
MOST_CHARACTERS = 5000
EXPECTED = ("read", "refused", "time limit", "memory limit")
NEVER_READ = ("external", "virtual", "soft", "dangling", "filter", "some filter", "pickle: calls")


@dataclass
class Box:
    """Folders to read hostile files in, and what must not change in them.

    Attributes:
        root: Holds the others.
        files: Where the hostile files are, with what they point to.
        cwd: The readers' working directory.
        tmp: Their folder for temporary files.
    """

    root: Path
    files: Path = field(init=False)
    cwd: Path = field(init=False)
    tmp: Path = field(init=False)

    def __post_init__(self) -> None:
        self.files, self.cwd, self.tmp = (self.root / "box" / name for name in ("files", "a", "b"))
        for folder in (self.files, self.cwd, self.tmp):
            folder.mkdir(parents=True)
        write_canaries(self.files)
        shutil.copytree(self.files, self.cwd, dirs_exist_ok=True, ignore=lambda *_: ["canary.fifo"])

    def state(self) -> dict[str, str]:
        """Return each path with a checksum."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in [*self.root.rglob("*"), OUTSIDE]
            if path.exists()
        }


def problem_of(case: Case, reading: Reading) -> str:
    """Return what came of a file that never may, `""` if nothing did."""
    error = str(reading.reply.get("error", "")) if reading.outcome == "refused" else ""
    if reading.outcome not in EXPECTED:
        return reading.outcome
    if reading.processor_seconds > MOST_SECONDS or reading.peak_bytes > MOST_BYTES:
        return "beyond the limits"
    if reading.outcome == "read" and case.mutation.removeprefix("inner ").startswith(NEVER_READ):
        return "read"
    if len(error) > MOST_CHARACTERS or not error.replace("\n", "").isprintable():
        return f"an error of {len(error)} characters, not all of them printable"
    return ""


def read_all(
    selected: Callable[[Iterator[Case]], Iterable[Case]], folder: Path, *, forked: bool = True
) -> Iterator[tuple[Case, Reading]]:
    """Read hostile files and compare what is around them before and after.

    Args:
        selected: Chooses among `MANY` cases.
        folder: An empty one.
        forked: Fork the readers, or else start them as production does.
    """
    (folder / "sound").mkdir()
    box = Box(folder / "reading")
    before = box.state()
    environment = child_environment() | {"TMPDIR": str(box.tmp)}
    with ReaderServer(box.cwd, environment) as server:
        read = server.read if forked else read_for_real
        for case in selected(cases(MANY, folder / "sound")):
            path = box.files / "weights"
            case.write(path)
            yield case, read(path, case.read_as)
            path.unlink()
    assert box.state() == before


def read_for_real(path: Path, layout: str = "") -> Reading:
    """Read a file by the function that the rest of the program calls."""
    reply: dict[str, object] = {}
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        read_weight_file(path, layout=layout or None)
    except WeightsError as error:
        reply["error"] = str(error)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return Reading(0, json.dumps(reply), "", seconds, work, 0)


def _assert_harmless(readings: Iterable[tuple[Case, Reading]], at_least: int) -> None:
    count, problems = 0, []
    for case, reading in readings:
        count += 1
        if problem := problem_of(case, reading):
            problems.append(
                f"{case.layout}, {case.mutation}, seed {case.seed}: {problem}\n{reading}"[:1000]
            )
    assert not problems, "\n".join(problems)
    assert count >= at_least


def _every(step: int) -> Callable[[Iterator[Case]], Iterable[Case]]:
    return lambda all_cases: itertools.islice(all_cases, 0, None, step)


def test_a_share_of_hostile_files_does_no_harm(tmp_path):
    _assert_harmless(read_all(_every(7), tmp_path), MANY // 7)


def test_a_few_hostile_files_do_no_harm_to_the_whole_program(tmp_path):
    _assert_harmless(read_all(_every(250), tmp_path, forked=False), MANY // 250)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_hostile_files_do_no_harm(tmp_path):
    _assert_harmless(read_all(_every(1), tmp_path), MANY)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_hostile_files_do_no_harm_to_the_whole_program(tmp_path):
    _assert_harmless(read_all(_every(25), tmp_path, forked=False), MANY // 25)


def main() -> None:
    """Print what came of all files, by layout and mutation."""
    rows: dict[tuple[str, str], list[Reading]] = defaultdict(list)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for case, reading in read_all(_every(1), Path(folder)):
            rows[case.layout, case.mutation].append(reading)
            if problem := problem_of(case, reading):
                problems.append(f"{case.layout}, {case.mutation}, seed {case.seed}: {problem}")
    by_layout: dict[tuple[str, str], list[Reading]] = defaultdict(list)
    for (layout, _), readings in rows.items():
        by_layout[layout, "all"] += readings
        by_layout["all", "all"] += readings
    print(f"| layout | mutation | files | {' | '.join(EXPECTED)} | slowest | most memory |")
    print(f"|{' --- |' * (5 + len(EXPECTED))}")
    for (layout, mutation), readings in [*rows.items(), *by_layout.items()]:
        counts = Counter(reading.outcome for reading in readings)
        slowest = max(reading.seconds for reading in readings)
        memory = max(reading.peak_bytes for reading in readings) >> 20
        figures = " | ".join(str(counts[outcome]) for outcome in EXPECTED)
        print(
            f"| {layout} | {mutation} | {len(readings)} | {figures} | {slowest:.2f} s |"
            f" {memory} MiB |"
        )
    print(*problems or ["Nothing else came of any."], sep="\n")


if __name__ == "__main__":
    main()
