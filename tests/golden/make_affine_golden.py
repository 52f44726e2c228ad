"""Record what Keras' `apply_affine_transform` does, for tests/test_augment_chain.py.

Run it with a Python that has Keras and SciPy; vgg-jax itself needs neither:

    KERAS_BACKEND=jax python tests/golden/make_affine_golden.py

Keras' fill modes `nearest` and `reflect` are recorded; its `constant` and `wrap` are SciPy's modes
of these names, which vgg-jax replaces by `grid-constant` and `grid-wrap`.
"""

from pathlib import Path

import keras  # pyright: ignore[reportMissingImports]
import numpy as np
from keras.src.legacy.preprocessing.image import (  # pyright: ignore[reportMissingImports]
    apply_affine_transform,
)

SIZE_PX = 8  # square: for other shapes Keras turns and zooms around a point beside the centre
COLUMNS = ("theta", "tx", "ty", "shear", "zx", "zy")
PARAMETERS = np.array(
    [
        (20.0, 0.0, 0.0, 0.0, 1.0, 1.0),
        (0.0, 1.3, 0.0, 0.0, 1.0, 1.0),
        (0.0, 0.0, 1.3, 0.0, 1.0, 1.0),
        (0.0, 0.0, 0.0, 25.0, 1.0, 1.0),
        (0.0, 0.0, 0.0, 0.0, 0.8, 1.2),
        (20.0, 1.3, -0.7, 5.0, 0.8, 1.2),
        (-40.0, -1.6, 1.6, 0.2, 1.2, 1.1),
    ]
)


def main() -> None:
    """Write keras_affine.npz beside this script."""
    image = np.random.default_rng(0).random((SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    nearest, reflect = (
        np.stack(
            [
                apply_affine_transform(
                    image,
                    **dict(zip(COLUMNS, row, strict=True)),
                    row_axis=0,
                    col_axis=1,
                    channel_axis=2,
                    fill_mode=fill,
                )
                for row in PARAMETERS
            ]
        )
        for fill in ("nearest", "reflect")
    )
    np.savez_compressed(
        Path(__file__).with_name("keras_affine.npz"),
        image=image,
        columns=np.array(COLUMNS),
        parameters=PARAMETERS,
        keras_version=np.array(keras.__version__),
        nearest=nearest,
        reflect=reflect,
    )


if __name__ == "__main__":
    main()
