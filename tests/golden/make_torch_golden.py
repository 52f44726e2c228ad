"""Writes narrow_torch.pth and narrow_torch_legacy.pth with the real PyTorch (made with 2.14.1).

The project's own Python writes the values, another one with torch and safetensors saves them:

    cd tests && python golden/make_torch_golden.py VALUES.safetensors
    python golden/make_torch_golden.py VALUES.safetensors torch
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def write_values(path: Path) -> None:
    sys.path.insert(0, str(FOLDER.parent))
    from torch_files import torch_arrays, write_safetensors

    write_safetensors(path, torch_arrays(1 / 64, seed=7, classifier=((0, 8), (3, 8), (6, 3))))


def write_golden(values: Path) -> None:
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file
    from torch import nn  # pyright: ignore[reportMissingImports]

    features: list[nn.Module] = []
    channels = 3
    for count, outputs in zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8), strict=True):
        for _ in range(count):
            features += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
            channels = outputs
        features.append(nn.MaxPool2d(2))
    dense = [nn.Linear(392, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout()]
    model = nn.Module()
    model.features = nn.Sequential(*features)
    model.classifier = nn.Sequential(*dense, nn.Linear(8, 3))
    model.load_state_dict(load_file(values))
    torch.save(model.state_dict(), FOLDER / "narrow_torch.pth")
    torch.save(
        model.state_dict(),
        FOLDER / "narrow_torch_legacy.pth",
        _use_new_zipfile_serialization=False,
    )


if __name__ == "__main__":
    (write_golden if "torch" in sys.argv[2:] else write_values)(Path(sys.argv[1]))
