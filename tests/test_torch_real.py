"""Files that the real PyTorch and torchvision write, at full size; run by `make test-slow`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.load import load_top_classifier

ROOT = Path(__file__).parents[1]
TORCH_PYTHON = Path(os.environ.get("VGG_JAX_TORCH_PYTHON", ROOT / ".venv-torch" / "bin" / "python"))
TOLERANCE = 1e-5
WRITER = """
import sys
from pathlib import Path
import numpy, torch, torchvision
from safetensors.torch import save_file
folder = Path(sys.argv[1])
torch.manual_seed(0)
model = torchvision.models.vgg16(weights=None).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.05)
        elif name.startswith("classifier"):
            parameter.normal_(0, (2 / parameter.shape[1]) ** 0.5)
state = model.state_dict()
torch.save(state, folder / "zip.pth")
torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
save_file(state, folder / "weights.safetensors")
images = numpy.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype("uint8")
x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
x = torchvision.transforms.functional.normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
with torch.inference_mode():
    features = model.features(x)
    logits = model(x)
numpy.savez(
    folder / "reference.npz",
    images=images, features=features.permute(0, 2, 3, 1), logits=logits,
)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_files_of_torchvision_give_its_outputs(tmp_path):
    if not TORCH_PYTHON.exists():
        pytest.skip(f"no {TORCH_PYTHON}; `make test-slow` makes it")
    subprocess.run([TORCH_PYTHON, "-c", WRITER, tmp_path], check=True)
    theirs = np.load(tmp_path / "reference.npz")
    for name in ("zip.pth", "legacy.pth", "weights.safetensors"):
        result = convert_weights(tmp_path / name, tmp_path / "converted")
        assert (result.head, result.preprocessing) == ("top", "torch")
        classifier = load_top_classifier(tmp_path / "converted")
        features = classifier.module.backbone(
            classifier.module.backbone.normalise(theirs["images"])
        )
        ours = {
            "features": features,
            "logits": classifier.logits(jax.numpy.asarray(theirs["images"])),
        }
        errors = {
            key: float(np.abs(value - theirs[key]).max() / np.abs(theirs[key]).max())
            for key, value in ours.items()
        }
        print(name, "proof", result.proof.largest, errors)
        assert max(errors.values()) <= TOLERANCE, (name, errors)
        shutil.rmtree(tmp_path / "converted")
        (tmp_path / name).unlink()
