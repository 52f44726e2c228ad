"""A classifier that is ready to be used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from vgg_jax.config import Interpolation, LossName, Precision
from vgg_jax.errors import DataError
from vgg_jax.model.arithmetic import set_arithmetic
from vgg_jax.model.classifier import Classifier, Functional, Parameters
from vgg_jax.model.pieces import PIECE, map_in_pieces, on_one_cpu, run_piece
from vgg_jax.training.losses import probabilities


class TrainedClassifier:
    """A classifier, trained here or published with its weights.

    Attributes:
        class_names: Names of the classes, in the order of the probabilities.
        image_size: Side in pixels of the square images it takes.
        interpolation: How pictures are resized for it.
        loss: The loss it was trained with.
        epoch: Number of the epoch whose parameters it has; None if it was not trained here.
    """

    def __init__(
        self,
        functional: Functional,
        parameters: Parameters,
        *,
        class_names: Sequence[str],
        image_size: int,
        interpolation: Interpolation,
        loss: LossName,
        precision: Precision = "float32",
        epoch: int | None = None,
    ) -> None:
        """Hold functions and parameters; `load_classifier` and `load_top_classifier` make one."""
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.interpolation: Interpolation = interpolation
        self.loss: LossName = loss
        self._precision: Precision = precision
        self.epoch = epoch
        self._functional = functional
        self._parameters = parameters
        self._logits = jax.jit(self._apply)
        self._probabilities = jax.jit(partial(probabilities, loss))  # one program, not eight

    def _apply(self, parameters: Parameters, images: jax.Array) -> jax.Array:
        classifier = self._functional.bind(parameters)
        backbone, precision = classifier.backbone, self._precision
        # Fewer than two pieces go at once: completed with black ones they would take longer. So
        # would other convolutions, which take seconds to compile.
        if on_one_cpu() and len(images) < 2 * PIECE:
            return classifier(images)
        if not on_one_cpu():
            set_arithmetic(backbone, precision, on_one_cpu=False, gradient=False)
            return classifier(images)
        if precision == "bfloat16":  # in float32 it takes some hundred pictures to make up for them
            set_arithmetic(backbone, precision, on_one_cpu=True, gradient=False)
        run = partial(run_piece, backbone, precision=precision)
        return classifier.classify(map_in_pieces(run, images))

    @property
    def module(self) -> Classifier:
        """The network itself, with the trained parameters, in inference mode."""
        return self._functional.bind(self._parameters)

    def logits(self, images: jax.Array) -> jax.Array:
        """Return the logits `[B, K]` of RGB images `[B, S, S, 3]`, uint8 or float32 in [0, 1]."""
        return self._logits(self._parameters, images)

    def predict(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Return the probabilities `[B, K]` of RGB images `[B, S, S, 3]`.

        In a run that was trained in bfloat16 on a CPU, fewer than eight go through in float32.

        They are uint8, or float32 in [0, 1]; S is `image_size`. With the loss `binary` each class
        has a probability of its own; else they sum to 1.

        Raises:
            DataError: If the images have another shape or type.
        """
        shape = (self.image_size, self.image_size, 3)
        if (
            images.ndim != 4
            or images.shape[1:] != shape
            or images.dtype not in (np.uint8, np.float32)
        ):
            raise DataError(
                f"predict got {images.dtype} {list(images.shape)}, but takes uint8, or float32 in"
                f" [0, 1], of shape [B, {self.image_size}, {self.image_size}, 3] in RGB;"
                " `vgg_jax.data.decode.resize_image` brings a picture to that size."
            )
        return np.asarray(self._probabilities(self.logits(jax.numpy.asarray(images))))
