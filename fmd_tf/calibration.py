"""What is done to the logits after training: a temperature, and offsets for rare classes.

Label smoothing makes a classifier too modest. Dividing its logits by one number, chosen on
validation faces, mends that and changes no label (Guo et al. 2017, "On Calibration of Modern
Neural Networks", arXiv:1706.04599). What is then right most often finds few of the rare class;
adding a part of the logarithm of each class's rarity finds more of them (Menon et al. 2021,
"Long-tail learning via logit adjustment", arXiv:2007.07314).
"""

from __future__ import annotations

import keras
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_LEAST, _MOST = 0.05, 20.0
# As sure beforehand as a handful of faces: of hundreds the answer is theirs alone, and of a few
# that are all right it is not to be ever surer.
_PRIOR_DEVIATION = 0.5


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the likeliest temperature, its logarithm being normal around 0 beforehand.

    Args:
        logits: float [num_faces, num_classes], of faces that were not trained on.
        labels: int [num_faces].

    Returns:
        0.05 to 20; below 1 the model was too modest, above 1 too sure. 1.0 without faces.
    """

    def surprise(log_temperature: float) -> float:
        chances = log_softmax(logits / np.exp(log_temperature), axis=1)
        beforehand = (log_temperature / _PRIOR_DEVIATION) ** 2 / 2
        return beforehand - float(chances[np.arange(len(labels)), labels].sum())

    bounds = (np.log(_LEAST), np.log(_MOST))
    return float(np.exp(minimize_scalar(surprise, bounds=bounds, method="bounded").x))


def rarity_offsets(class_counts: np.ndarray, strength: float) -> np.ndarray:
    """Return what is added to the logits of each class.

    Args:
        class_counts: int [num_classes], training faces.
        strength: 0 for nothing, 1 to answer as if all classes were equally frequent.

    Returns:
        float32 [num_classes], 0 for the most frequent class and more for rarer ones; 0 for one
        that was never seen, of which nothing is known.
    """
    counts = np.where(class_counts > 0, class_counts, class_counts.max(initial=1))
    return (strength * np.log(counts.max() / counts)).astype(np.float32)


def rescale_logits(model: keras.Model, temperature: float, offsets: np.ndarray) -> None:
    """Divide the logits of a classifier and add to them, inside its last dense layer.

    Args:
        model: From `model.build_model`; changed in place.
        temperature: More than 0.
        offsets: float [num_classes], added after the division.
    """
    layer = model.get_layer("logits")
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel / temperature, bias / temperature + offsets])
