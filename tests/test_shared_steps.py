"""Trainings of one process that compute the same share their programs; others do not."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from training_runs import latest, same_run

from vgg_jax import sweep, train
from vgg_jax.config import TrainConfig
from vgg_jax.progress import Progress
from vgg_jax.training.steps import Steps
from vgg_jax.workflows.backbone import open_backbone
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.session import Session, chain_of

PLUGINS = '''
import dataclasses, pathlib
import jax.numpy as jnp
import numpy as np
from flax import nnx
from vgg_jax.api import PixelAugmentation

@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve(PixelAugmentation):
    """Map values by a table from a file.

    Attributes:
        file: Its path.
    """

    file: str = ""

    def __post_init__(self):
        object.__setattr__(self, "table", np.loadtxt(self.file, dtype=np.float32))

    def apply(self, key, image):
        return jnp.interp(image, jnp.linspace(0, 1, len(self.table)), self.table)

@dataclasses.dataclass(frozen=True, kw_only=True)
class Brighter(PixelAugmentation):
    """Brighten by what a file says.

    Attributes:
        file: Its path.
    """

    file: str = ""

    def __post_init__(self):
        object.__setattr__(self, "by", float(pathlib.Path(self.file).read_text()))

    def apply(self, key, image):
        return image + self.by

class Plain(nnx.Module):
    def __init__(self, input_shape, num_classes, *, rngs, names=None, scale=1):
        self.logits = nnx.Linear(input_shape[-1], num_classes, rngs=rngs)
        self.scale = scale
        self.names = frozenset() if names is None else set(names)

    def __call__(self, features):
        return self.scale * self.logits(features.mean((1, 2)))
'''


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    jax.clear_caches()


@pytest.fixture
def code(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(PLUGINS)
    return str(tmp_path / "mine.py")


@pytest.fixture
def steps_of(options):
    def start(**others) -> Steps:
        config = TrainConfig.from_values({**options, **others}).resolved()
        opened = open_backbone(config.weights, Progress())
        functional, parameters = build_functional(opened, config, 3)
        return Session.start(config, functional, parameters, chain_of(config), 3).steps

    return start


def test_numbers_that_are_data_make_no_difference(steps_of):
    given = {"head": "mlp:dropout=0.5", "augment": ("keras", "rotation:degrees=5")}
    first = steps_of(**given)
    assert steps_of(**given) is first
    for others in (
        {"learning_rate": 0.5},
        {"weight_decay": 0.5},
        {"label_smoothing": 0.1},
        {"epochs": 7},
        {"batch_size": 5},
    ):
        assert steps_of(**given, **others) is first, others


@pytest.mark.parametrize(
    "others",
    [
        {"seed": 1},
        {"head": "linear"},
        {"head": "mlp"},
        {"head": "mlp:hidden=[256]"},
        {"image_size": 64},
        {"loss": "binary"},
        {"optimizer": "adam"},
        {"train_from": "conv5_2"},
        {"precision": "bfloat16"},
        {"features_dtype": "bfloat16"},
        {"augment": ("rotation:degrees=5",)},
        {"augment": ("rotation:degrees=6",)},
        {"augment": ("rotation:degrees=5",), "fill": "reflect"},
        {"augment": ("rotation:degrees=5", "brightness")},
    ],
    ids=str,
)
def test_what_changes_a_program_tells_them_apart(steps_of, others):
    plain, rotated = steps_of(), steps_of(augment=("rotation:degrees=5",))
    found = steps_of(**others)
    assert found is not plain
    assert (found is rotated) == (others == {"augment": ("rotation:degrees=5",)})


def test_options_that_python_calls_equal_are_told_apart(steps_of, code):
    given = [f"{code}#Plain{options}" for options in ("", ":scale=1", ":scale=1.0", ":scale=true")]
    assert len({id(steps) for steps in [steps_of(head=head) for head in given]}) == 4


def test_what_cannot_be_compared_is_not_shared(steps_of, code, options, tmp_path):
    head = f"{code}#Plain:names=[1]"
    assert steps_of(head=head) is not steps_of(head=head)
    assert steps_of(head=f"{code}#Plain") is steps_of(head=f"{code}#Plain")
    first, second = (
        train(**options, head=head, run=str(tmp_path / name), allow_local_code=True)
        for name in ("first", "second")
    )
    same_run(first.path, second.path)


@pytest.mark.parametrize(("kind", "values"), [("Curve", ("0 0.2", "0 0.9")), ("Brighter", "01")])
def test_what_an_augmentation_reads_counts_too(code, options, tmp_path, kind, values):
    """Though its options, by which it compares, are the same."""
    file = tmp_path / "values.txt"
    found = []
    for number, text in enumerate((*values, values[0])):
        file.write_text(text)
        run = train(
            **{**options, "augment": (f"{code}#{kind}:file='{file}'",), "epochs": 1},
            run=str(tmp_path / f"{number}"),
            allow_local_code=True,
        )
        found.append(latest(run.path)["head/logits/bias"])
    assert not np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def compiled() -> list[int]:
    """Return how many programs of training and of evaluation there are."""
    return [program._cache_size() for program in (Steps.train, Steps.evaluate)]  # pyright: ignore


def test_a_training_with_programs_of_another_is_the_same_to_the_bit(options, tmp_path):
    def trained(name: str, **others) -> Path:
        return train(**{**options, **others}, run=str(tmp_path / name)).path

    alone = trained("alone", learning_rate=3e-3)
    jax.clear_caches()
    trained("other batches", batch_size=4)
    trained("other rate")
    assert compiled() == [2, 2]
    same_run(trained("same", learning_rate=3e-3), alone)
    assert compiled() == [2, 2]


def test_candidates_of_a_sweep_in_turn_compile_once(options, tmp_path):
    sweep(**{**options, "learning_rate": [1e-3, 1e-4, 1e-5]}, run=str(tmp_path / "sweep"))
    assert compiled() == [1, 1]
