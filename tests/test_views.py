"""What augmentations show, in pictures and in averaged evaluations."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vgg_jax.augment.chain import build_chain
from vgg_jax.cli.app import app
from vgg_jax.contract import BatchAugmentation, HostAugmentation
from vgg_jax.data.decode import decode_image, resize_image
from vgg_jax.errors import ConfigError, DataError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress
from vgg_jax.training.losses import example_losses, probabilities, share_losses
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import example_keys, mixing_key
from vgg_jax.workflows.evaluate import evaluate
from vgg_jax.workflows.feed import open_training_data, read_batches
from vgg_jax.workflows.load import load_classifier
from vgg_jax.workflows.preview import preview_data, preview_picture, write_grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speckle(HostAugmentation):
    def apply(self, rng, image):
        return np.where(rng.random(image.shape[:2])[..., None] < 0.2, 255, image).astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average(BatchAugmentation):
    """Mix every picture with the mean of all that are valid."""

    def apply(self, key, images, targets, valid):
        share = jax.random.uniform(key)
        weights = valid / valid.sum()

        def mixed(x):
            mean = jnp.tensordot(weights, x, 1)
            return share * x + (1 - share) * mean

        return mixed(images), mixed(targets)


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def extra(installed):
    entries = {"speckle": f"{__name__}:Speckle", "average": f"{__name__}:Average"}
    installed("extra-views", "1.0", entries, group="vgg_jax.augmentations")


CHAIN = ["speckle", "rotation:degrees=20", "brightness", "average"]


@pytest.mark.usefixtures("extra")
def test_a_preview_shows_what_a_training_sees(run, options):
    choices = [parse_choice(text) for text in CHAIN]
    shown = preview_data(
        str(options["data"]), choices, views=2, pictures=5, seed=3, image_size=32, fill="wrap"
    )
    assert shown.shape == (5, 3, 32, 32, 3)

    config = dataclasses.replace(
        RunFolder(run.path).read_config(), seed=3, image_size=32, augment=tuple(CHAIN), fill="wrap"
    )
    examples = open_training_data(config, Progress()).splits["train"]
    chain = build_chain(choices, fill="wrap")
    rows = [int(np.argmax(examples.labels == label)) for label in range(3)] + [1, 2]
    for epoch in (1, 2):
        found = {}
        for batch in read_batches(config, chain, examples, None, epoch, 1):
            keys = example_keys(3, jnp.asarray(epoch, jnp.uint32), jnp.asarray(batch.content))
            images = chain.apply(keys, jnp.asarray(batch.images))
            rows_of_batch = zip(batch.index, images, batch.valid, strict=True)
            found |= {int(i): image for i, image, valid in rows_of_batch if valid}
        images = jnp.stack([found[row] for row in rows])
        targets = jax.nn.one_hot(examples.labels[np.array(rows)], 3)
        key = mixing_key(3, jnp.asarray(epoch, jnp.uint32))
        images, _ = chain.mix(key, images, targets, jnp.ones(5, bool))
        difference = np.abs(shown[:, epoch] / 255 - np.asarray(images))
        assert difference.max() < 0.51 / 255 + 1e-5


def test_the_first_pictures_are_of_different_classes(options):
    choices = [parse_choice("horizontal-flip:probability=1")]
    shown = preview_data(str(options["data"]), choices, views=1, pictures=3, image_size=32)
    np.testing.assert_array_equal(shown[:, 1], shown[:, 0, :, ::-1])
    assert len({picture.tobytes() for picture in shown[:, 0]}) == 3


def test_one_picture_is_shown_as_it_is_and_in_versions(photos, tmp_path):
    picture = next(photos.rglob("*.png"))
    shown = preview_picture(picture, [parse_choice("noise")], views=4, seed=1)
    original = resize_image(decode_image(picture.read_bytes(), "it"), 224, "bilinear")
    np.testing.assert_array_equal(shown[0, 0], original)
    assert len({version.tobytes() for version in shown[0]}) == 5
    again = preview_picture(picture, [parse_choice("noise")], views=4, seed=1)
    np.testing.assert_array_equal(shown, again)
    write_grid(shown, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        grid = np.asarray(image)
    assert grid.shape == (2 * (224 + 18) + 4, 3 * 228 + 4, 3)  # five versions fill 2 rows of 3
    np.testing.assert_array_equal(grid[18 : 18 + 224, 4 : 4 + 224], original)
    np.testing.assert_array_equal(grid[18 : 18 + 224, 232 : 232 + 224], shown[0, 1])


def test_the_commands_write_grids(photos, tmp_path):
    picture = next(photos.rglob("*.png"))
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    arguments = [
        "plugins",
        "show",
        "zoom:fraction=0.5",
        "--preview",
        str(picture),
        "--out",
        str(one),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert str(one) in result.stdout
    assert size_of(one)[0] == 3 * 228 + 4
    arguments = ["augment-preview", "--data", str(photos), "--augment", "zoom", "--views", "2"]
    result = CliRunner().invoke(
        app, [*arguments, "--out", str(two), "--image-size", "64", "--json"]
    )
    assert json.loads(result.stdout) == {"out": str(two), "pictures": 4, "views": 2}
    assert size_of(two) == (3 * 68 + 4, 4 * 82 + 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.png"], "name an augmentation with --augment"),
        (["--augment", "zoom", "--out", "x.jpg"], "must end in .png"),
        (["--augment", "zom", "--out", "x.png"], "Did you mean 'zoom'"),
        (["--augment", "zoom", "--data", "/nowhere", "--out", "x.png"], "/nowhere"),
        (["--augment", "zoom", "--out", "/nowhere/x.png"], "/nowhere/x.png cannot be written"),
    ],
)
def test_previews_that_cannot_be_made_say_why(arguments, message, photos):
    data = [] if "--data" in arguments else ["--data", str(photos)]
    result = CliRunner().invoke(app, ["augment-preview", *data, *arguments])
    assert result.exit_code == 1
    assert message in result.output


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.png cannot be read: No such file"):
        preview_picture(tmp_path / "none.png", [parse_choice("zoom")])


@pytest.mark.usefixtures("extra")
def test_a_single_picture_is_not_mixed_with_itself(photos, tmp_path):
    picture, out = next(photos.rglob("*.png")), tmp_path / "grid.png"
    arguments = ["plugins", "show", "average", "--preview", str(picture), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "average mixes pictures with each other" in result.output
    assert "augment-preview --data FOLDER --augment average" in " ".join(result.output.split())
    assert not out.exists()


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("augment", [("rotation:degrees=90",), ("speckle", "noise")])
def test_views_are_averaged(run, augment):
    """Against a plain loop over the views, which shares no batching with the evaluation."""
    found = evaluate(run.path, augment=augment, views=3)
    config = RunFolder(run.path).read_config()
    classifier = load_classifier(run.path)
    chain = build_chain([parse_choice(text) for text in augment])

    examples = open_training_data(config, Progress()).splits["validation"]
    found = evaluate(run.path, augment=augment, views=3, split="validation")
    shares = []
    for view in (1, 2, 3):
        order = dataclasses.replace(config, batch_size=2)
        kept = {}
        for batch in read_batches(order, chain, examples, None, view, 1):
            keys = example_keys(config.seed, jnp.uint32(view), jnp.asarray(batch.content))
            images = chain.apply(keys, jnp.asarray(batch.images))
            rows = zip(batch.index, classifier.predict(images), batch.valid, strict=True)
            kept |= {int(i): row for i, row, valid in rows if valid}
        shares.append([kept[i] for i in range(len(examples))])
    mean = np.mean(shares, axis=0)
    right = mean[np.arange(len(examples)), examples.labels]
    assert found.loss == pytest.approx(float(-np.log(right).mean()), rel=1e-4)
    assert found.accuracy == pytest.approx((mean.argmax(1) == examples.labels).mean())
    assert found.loss != pytest.approx(evaluate(run.path, split="validation").loss, rel=1e-3)


def test_neutral_views_change_nothing(run):
    plain = evaluate(run.path)
    neutral = evaluate(run.path, augment=("rotation:degrees=0",), views=2)
    assert neutral.loss == pytest.approx(plain.loss, rel=1e-5)
    assert neutral.confusion_matrix == plain.confusion_matrix


@pytest.mark.parametrize("name", ["categorical", "binary", "keras-binary"])
def test_losses_of_probabilities_are_those_of_their_logits(name):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    expected = example_losses(name, jnp.asarray(logits), jnp.asarray(labels))
    shares = np.asarray(probabilities(name, jnp.asarray(logits)))
    np.testing.assert_allclose(share_losses(name, shares, labels), expected, rtol=1e-5)


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"views": 4}, "--views 4 needs --augment"),
        ({"views": 0, "augment": ("zoom",)}, "--views is 0, but must be 1 or more"),
        ({"augment": ("zoom", "average")}, "mixes pictures cannot be evaluated with.*average"),
    ],
)
def test_views_that_make_no_sense_are_refused(run, wrong, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(run.path, **wrong)


def test_the_command_says_how_many_views_it_averages(run):
    result = CliRunner().invoke(
        app, ["evaluate", str(run.path), "--augment", "zoom", "--views", "2"]
    )
    assert result.exit_code == 0, result.output
    assert "2 views of each" in result.stderr
