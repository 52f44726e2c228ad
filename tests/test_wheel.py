"""The wheel holds the whole program: installed elsewhere it lists its plugins and has its demo."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_installed_elsewhere_works(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "vgg_jax/demo/vgg16_quarter.h5" in names
    assert "vgg_jax/model/imagenet_classes.txt" in names
    assert "vgg_jax/weights/manifest.toml" in names
    assert "vgg_jax/py.typed" in names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"vgg_jax"}
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what an installer does with a pure wheel
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import vgg_jax
assert vgg_jax.__file__.startswith(sys.argv[1]), vgg_jax.__file__
from vgg_jax.plugins import list_plugins
assert {'dense256', 'keras'} <= {p.name for p in list_plugins()}
backbone = vgg_jax.load_backbone('demo')
assert backbone.width == 0.25
print('works')
"""
    environment = {**os.environ, "VGG_JAX_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.stdout == "works\n", done.stderr
