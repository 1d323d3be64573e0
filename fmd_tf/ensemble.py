"""Several classifiers as one, whose logits are the mean of theirs.

Models that begin from different weights err on different faces, so what they say together is
right more often (Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty
Estimation using Deep Ensembles", arXiv:1612.01474).
"""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
from scipy.linalg import block_diag

from fmd_tf.calibration import rescale_logits
from fmd_tf.model import ModelCard, backbones, build_model, kind_of_weights

_DENSE = ("head_dense", "logits")


def join_models(
    first: tuple[keras.Model, ModelCard], second: tuple[keras.Model, ModelCard]
) -> tuple[keras.Model, ModelCard]:
    """Make one classifier of two.

    Its backbone is both backbones, whose channels follow one another, and so are the units of its
    dense layer: whoever knows a classifier's layers knows its layers too.

    Args:
        first: Model and card, the model with its temperature, and offsets that its card tells.
        second: Likewise, of the same crops and backbone.

    Returns:
        A model whose logits are the mean of theirs without offsets, and its card, that of the
        second with the first's training as "teacher"; it has no temperature yet.
    """
    models, cards = zip(first, second, strict=True)
    for model, card in (first, second):
        rescale_logits(model, 1.0, -np.array(card.training.get("logit_offsets", 0.0)))
    card = cards[1]
    joined = build_model(
        card.model_name,
        card.image_size,
        len(card.class_names),
        [kind_of_weights(model.get_layer("backbone")) for model in models],
        dense_units=sum(model.get_layer("head_dense").units for model in models),
        multi_view=card.multi_view,
        is_loaded=False,
    )
    for member, model in zip(backbones(joined), models, strict=True):
        member.set_weights(model.get_layer("backbone").get_weights())
    _join_heads(joined, models)
    training = {
        name: value
        for name, value in card.training.items()
        if name not in ("temperature", "logit_offsets")
    }
    return joined, replace(card, training={**training, "teacher": cards[0].training})


def _join_heads(joined: keras.Model, models: tuple[keras.Model, ...]) -> None:
    """Let each member's units see its own channels alone, and average what they say."""
    (kernels, biases), (lasts, ends) = (
        zip(*(model.get_layer(name).get_weights() for model in models), strict=True)
        for name in _DENSE
    )
    dense, logits = (joined.get_layer(name) for name in _DENSE)
    dense.set_weights([block_diag(*kernels), np.concatenate(biases)])
    logits.set_weights([np.concatenate(lasts) / len(models), np.mean(ends, axis=0)])
