"""The real Keras and the real PyTorch load exported files and compute what is computed here.

What runs there is the code that comes with each exported file, and nothing else of ours.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from weight_files import write_published_h5

from vgg_jax.demo.pictures import PATTERNS, draw
from vgg_jax.weights.export import SUFFIXES, Target
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.export import ExportResult, export_weights
from vgg_jax.workflows.load import load_backbone, load_classifier
from vgg_jax.workflows.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
PYTHONS = {
    "keras": Path(os.environ.get("VGG_JAX_KERAS_PYTHON", ROOT / ".venv-keras/bin/python")),
    "torch": Path(os.environ.get("VGG_JAX_TORCH_PYTHON", ROOT / ".venv-torch/bin/python")),
}
TOLERANCE = 1e-5
BEFORE = {
    "keras": "import numpy\nimages = numpy.load('images.npy')",
    "torch": (
        "import numpy, torch\n"
        "images = torch.from_numpy(numpy.load('images.npy')).permute(0, 3, 1, 2)"
    ),
}
AFTER = "numpy.save('outputs.npy', numpy.asarray(outputs))"
TORCHVISION = """
import json
import numpy, torch, torchvision
from safetensors import safe_open
from safetensors.torch import load_file
model = torchvision.models.vgg16(num_classes=10)
model.load_state_dict(load_file("file.safetensors"))
model.eval()
with safe_open("file.safetensors", "pt") as file:
    mean = torch.tensor(json.loads(file.metadata()["mean"]))[:, None, None]
images = torch.from_numpy(numpy.load("images.npy")).permute(0, 3, 1, 2)
with torch.inference_mode():
    outputs = model(images - mean).softmax(1)
"""


def _images(size: int) -> np.ndarray:
    """Draw two pictures; in random numbers the network would see little but their mean."""
    rng = np.random.default_rng(size)
    pictures = [Image.fromarray(draw(PATTERNS[name], rng)) for name in ("stripes", "dots")]
    return np.stack([np.asarray(picture.resize((size, size))) for picture in pictures])


def _run_there(program: str, code: str, images: np.ndarray, folder: Path) -> np.ndarray:
    """Run code in the other program's environment; returns its `outputs`."""
    np.save(folder / "images.npy", images)
    environment = {**os.environ, "KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": ""}
    (folder / "code.py").write_text("\n".join([BEFORE[program], code, AFTER]))
    command = [str(PYTHONS[program].absolute()), "code.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "outputs.npy")


def _check_agreement(
    source: str | Path,
    target: Target,
    size: int,
    compute: Callable[[np.ndarray], np.ndarray],
    folder: Path,
) -> ExportResult:
    """Compare what is computed here, by `compute`, with what the other program gives."""
    program = target.partition("-")[0]
    if not PYTHONS[program].exists():
        pytest.skip(
            f"no {program} at {PYTHONS[program]}; set VGG_JAX_{program.upper()}_PYTHON to a Python"
            " that has it"
        )
    result = export_weights(source, target, folder / f"file{SUFFIXES[target]}")
    images = _images(size)
    ours, theirs = compute(images), _run_there(program, result.code, images, folder)
    assert theirs.shape == ours.shape
    assert _error(theirs, ours) <= TOLERANCE
    # The comparison would notice swapped colours and transposed pictures.
    for wrong in (images[..., ::-1], images.swapaxes(1, 2)):
        assert _error(compute(wrong), ours) > 100 * TOLERANCE
    print(f"\n{target} {source}: maximal relative error {_error(theirs, ours):.1e}")
    return result


def _error(theirs: np.ndarray, ours: np.ndarray) -> float:
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory) -> Callable[[str, str], Path]:
    """Return a function that trains a run, once, of a size of the network and a head."""
    folder = tmp_path_factory.mktemp("real")
    changes = {
        "narrow": {"image_size": 96, "epochs": 4},
        "full": {"image_size": 224, "weights": "random:0", "epochs": 1, "learning_rate": 1e-6},
    }

    def train_once(size: str, head: str) -> Path:
        run = folder / f"{size}-{head}"
        if not run.exists():
            train(**{**options, **changes[size]}, head=head, run=str(run))
        return run

    return train_once


@pytest.mark.parametrize("target", tuple(SUFFIXES))
@pytest.mark.parametrize("head", ["dense256", "linear"])
@pytest.mark.parametrize("size", ["narrow", "full"])
def test_a_classifier_gives_the_same_probabilities(trained, size, head, target, tmp_path):
    run = trained(size, head)
    classifier = load_classifier(run)
    _check_agreement(run, target, classifier.image_size, classifier.predict, tmp_path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Callable[[float, bool], Path]:
    """Return a function that converts seeded weights, once, of a width, with or without top."""
    folder = tmp_path_factory.mktemp("weights")

    def convert_once(width: float, top: bool) -> Path:
        out = folder / f"{width}-{top}"
        if not out.exists():
            edit = _shrink_logits if top else None
            write_published_h5(folder / "source.h5", width, top=top, edit=edit)
            convert_weights(str(folder / "source.h5"), out)
            (folder / "source.h5").unlink()
        return out

    return convert_once


def _shrink_logits(file: h5py.File) -> None:
    """Bring random logits down to the size of trained ones; softmax would magnify rounding."""
    kernel = file["predictions/predictions_W_1:0"]
    assert isinstance(kernel, h5py.Dataset)
    kernel[...] = 0.1 * kernel[...]


@pytest.mark.parametrize("target", tuple(SUFFIXES))
@pytest.mark.parametrize("width", [1 / 16, 1])
def test_a_backbone_gives_the_same_features(converted, width, target, tmp_path):
    weights = converted(width, False)
    backbone = load_backbone(weights)

    def features(images: np.ndarray) -> np.ndarray:
        found = np.asarray(backbone(backbone.normalise(images)))
        return found.transpose(0, 3, 1, 2) if target == "torch-safetensors" else found

    _check_agreement(weights, target, 64, features, tmp_path)


@pytest.mark.parametrize("target", tuple(SUFFIXES))
@pytest.mark.parametrize("width", [1 / 16, 1])
def test_the_top_gives_the_same_probabilities(converted, width, target, tmp_path):
    weights = converted(width, True)
    backbone, top = load_backbone(weights), load_weights(weights, with_top=True).top

    def probabilities(images: np.ndarray) -> np.ndarray:
        return _apply_top(top, np.asarray(backbone(backbone.normalise(images))))

    result = _check_agreement(weights, target, 224, probabilities, tmp_path)
    if width == 1 and target == "keras-h5":
        assert "keras.applications.VGG16(weights=None, classes=10)" in result.code
    if width == 1 and target == "torch-safetensors":
        theirs = _run_there("torch", TORCHVISION, _images(224), tmp_path)
        assert _error(theirs, probabilities(_images(224))) <= TOLERANCE


def _apply_top(
    top: Mapping[str, tuple[np.ndarray, np.ndarray]], features: np.ndarray
) -> np.ndarray:
    """Compute the published top in NumPy."""
    x = features.reshape(len(features), -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ top[name][0] + top[name][1], 0)
    x = x @ top["fc8"][0] + top["fc8"][1]
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)
