"""Three classes of noise in two splits; encoded already, so that TFDS needs no TensorFlow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from picture_files import image_bytes

CLASSES = ("cat", "dog", "ant")  # not sorted: labels follow this order
COUNTS = {"train": 12, "test": 6}


def picture(split: str, i: int) -> bytes:
    return image_bytes(seed=[len(split), i], suffix=".png")


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
        )
        return self.dataset_info_from_configs(
            description="Drawn.", features=features, supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split, count) for split, count in COUNTS.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(count):
            yield i, {"image": io.BytesIO(picture(split, i)), "label": i % len(CLASSES)}
