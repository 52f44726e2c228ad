"""Whether several steps in one program are faster than one by one, and candidates side by side.

Run by bench.py, a case in a process of its own; the arguments say which.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert import measure

HERE = Path(__file__).parent
RUN = f"import sys; sys.path.insert(0, {str(HERE)!r}); import chunks; chunks.main()"
WINS = 0.95  # of the time, or it is noise
CLASSES = 5


@dataclasses.dataclass(frozen=True)
class Part:
    """A trained part to measure.

    Attributes:
        head: Of the classifier.
        boundary: Trained from there on.
        steps: In a chunk.
        repeats: The median of so many chunks.
        rates: How many learning rates to train side by side, one measurement each.
    """

    head: str
    boundary: str
    steps: int = 8
    repeats: int = 9
    rates: tuple[int, ...] = (3, 9)


PARTS = (
    Part("dense256", "head"),
    Part("linear", "head"),
    Part("gap-mlp", "head"),
    Part("gap-mlp:hidden=[1024]", "head"),
    Part("dense256", "conv5_1", steps=4, repeats=5, rates=(3,)),
)


def chunks(weights: str, batch_sizes: Sequence[int], image_size: int) -> Iterator[dict[str, Any]]:
    """Yield milliseconds a step of each part, in each way to take several of them."""
    for number, part in enumerate(PARTS):
        for batch_size in batch_sizes if part.rates else batch_sizes[:1]:
            arguments = (str(number), weights, str(batch_size), str(image_size))
            measured = measure(RUN, *arguments)
            figures = json.loads(measured.output.splitlines()[-1])
            who = f"{part.head} from {part.boundary}, batch {batch_size}"
            for case in figures:
                yield {"who": who, **case, "others_cores": measured.others_cores}


def described(case: Mapping[str, Any]) -> str:
    """Return the figures of a case in words, and whether they are in favour of one program."""
    ms = dict(case["ms"])
    (plain, base), *others = ms.items()
    texts = [f"{plain} {base:.2f} ms"]
    texts += [f"{way} {value:.2f} ({value / base:.2f})" for way, value in others]
    best = min(ms, key=ms.__getitem__)
    wins = best if ms[best] <= WINS * base else plain
    return f"{', '.join(texts)}: {wins}"


def main() -> None:
    """Measure the part that the arguments name, and print the cases as JSON."""
    from vgg_jax.heap import keep_freed_memory

    keep_freed_memory()  # as the commands do
    number, weights, batch_size, image_size = sys.argv[1:]
    part = PARTS[int(number)]
    trial = Trial(part, weights, int(batch_size), int(image_size))
    cases = [trial.in_chunks(), *map(trial.side_by_side, part.rates)]
    print(json.dumps(cases))


class Trial:
    """The steps of a part, ready to be taken on features that are on the device."""

    def __init__(self, part: Part, weights: str, batch_size: int, image_size: int) -> None:
        """Build the classifier, and draw the features of as many batches as a chunk has."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from vgg_jax.augment.chain import Chain
        from vgg_jax.config import TrainConfig
        from vgg_jax.training.inputs import Inputs
        from vgg_jax.training.steps import Totals, put_batch, replicate
        from vgg_jax.workflows.backbone import open_backbone
        from vgg_jax.workflows.load import build_functional
        from vgg_jax.workflows.session import Session

        config = TrainConfig(
            weights=weights,
            head=part.head,
            train_from=part.boundary,
            batch_size=batch_size,
            image_size=image_size,
            learning_rate=1e-5,
        ).resolved()
        functional, parameters = build_functional(open_backbone(weights), config, CLASSES)
        session = Session.start(config, functional, parameters, Chain(), CLASSES)
        self.part, self.config, self.steps = part, config, session.steps
        self.state = session.state
        self.totals = replicate(session.mesh, Totals.start())
        pictures = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8)
        shape = jax.eval_shape(
            lambda images: self.steps.pool(self.steps.features(session.frozen, images)), pictures
        ).shape
        rng = np.random.default_rng(0)
        self.batches = [
            put_batch(
                session.mesh,
                Inputs(
                    np.maximum(rng.standard_normal(shape, np.float32), 0),  # pyright: ignore
                    rng.integers(0, CLASSES, batch_size).astype(np.int32),  # pyright: ignore
                    np.ones(batch_size, bool),  # pyright: ignore
                ),
            )
            for _ in range(part.steps)
        ]
        self.stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.batches)

    def in_chunks(self) -> dict[str, Any]:
        """Compare steps one by one with a loop in one program, as in chunks, and unrolled."""
        import jax

        def one_by_one(state: Any, totals: Any) -> Any:
            for inputs in self.batches:
                state, totals = self.steps.train(state, totals, inputs)
            return state, totals

        def loop(state: Any, totals: Any) -> Any:
            return self.steps.train(state, totals, self.stacked)

        start = (self.state, self.totals)
        ways = {
            "one by one": (one_by_one, start),
            "loop": (loop, start),
            "unrolled": (jax.jit(one_by_one, donate_argnums=(0, 1)), start),
        }
        ms = timed(ways, self.part.repeats)
        per_step = {way: round(value / self.part.steps, 3) for way, value in ms.items()}
        return {"what": f"chunks of {self.part.steps}, a step", "ms": per_step}

    def side_by_side(self, count: int) -> dict[str, Any]:
        """Compare a step of each of `count` learning rates in turn with all of them vmapped."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from vgg_jax.training.side_by_side import StackedSteps

        stacked, inputs = StackedSteps(self.steps), self.batches[0]

        def in_turn(all_of_them: Any) -> Any:
            return [self.steps.train(state, totals, inputs) for state, totals in all_of_them]

        def vmapped(states: Any, totals: Any) -> Any:
            return stacked.train(states, totals, inputs)

        starts = []
        for rate in np.geomspace(1e-6, 1e-4, count, dtype=np.float32):
            numbers = self.state.hyperparameters._replace(learning_rate=jnp.asarray(rate))
            starts.append((self.state._replace(hyperparameters=numbers), self.totals))
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        ways = {"in turn": (in_turn, (starts,)), "vmapped": (vmapped, together)}
        ms = {way: round(value, 3) for way, value in timed(ways, self.part.repeats).items()}
        return {"what": f"{count} learning rates, a step of all", "ms": ms}


def timed(
    ways: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], repeats: int
) -> dict[str, float]:
    """Return the median milliseconds of each way; the machine's changes of speed fall on all.

    A way is a function of states, which it may donate, to new ones, and the states to begin with.
    """
    import jax
    import numpy as np

    def copied(array: Any) -> Any:
        return jax.device_put(np.array(array), array.sharding)

    states = {way: jax.tree.map(copied, start) for way, (_, start) in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(-1, repeats):  # the first compiles
        for way, (call, _) in ways.items():
            begun = time.perf_counter()
            result = call(*states[way])
            states[way] = result if isinstance(result, tuple) else (result,)
            jax.block_until_ready(states[way])
            if repeat >= 0:
                times[way].append(1000 * (time.perf_counter() - begun))
    return {way: statistics.median(values) for way, values in times.items()}
