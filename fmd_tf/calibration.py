"""Temperature scaling: probabilities that are right as often as they say.

Label smoothing makes a classifier too modest. Dividing its logits by one number, chosen on
validation faces, mends that and changes no label (Guo et al. 2017, "On Calibration of Modern
Neural Networks", arXiv:1706.04599).
"""

from __future__ import annotations

import keras
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_LEAST, _MOST = 0.05, 20.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature of the least cross-entropy.

    Args:
        logits: float [num_faces, num_classes], of faces that were not trained on.
        labels: int [num_faces].

    Returns:
        0.05 to 20; below 1 the model was too modest, above 1 too sure. 1.0 without faces.
    """
    if not len(labels):
        return 1.0

    def cross_entropy(log_temperature: float) -> float:
        chances = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(chances[np.arange(len(labels)), labels].mean())

    bounds = (np.log(_LEAST), np.log(_MOST))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def apply_temperature(model: keras.Model, temperature: float) -> None:
    """Divide the logits of a classifier by a temperature, inside its last dense layer.

    Args:
        model: From `model.build_model`; changed in place.
        temperature: More than 0.
    """
    layer = model.get_layer("logits")
    layer.set_weights([weight / temperature for weight in layer.get_weights()])
