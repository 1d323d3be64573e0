"""Train a small classifier to answer as a large one does: knowledge distillation.

Student and teacher see the same augmented view, each at its own size, for as long as training
lasts (Hinton et al. 2015, arXiv:1503.02531; Beyer et al. 2022, "Knowledge distillation: A good
teacher is patient and consistent", arXiv:2106.05237).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmd_tf.calibration import rescale_logits
from fmd_tf.devices import precision_policy
from fmd_tf.freezing import fold_batch_norm
from fmd_tf.model import (
    ModelCard,
    ModelError,
    build_model,
    dtype_policy,
    is_depthwise,
    load_model,
    logits_model,
    same_network,
)

TEMPERATURE = 2.0
"""Both answers are softened by it, so that the less likely classes count too."""
WEIGHT = 4.0
"""The teacher's answer counts so many times as much as the label."""

Logits = Callable[[Any], Any]


@dataclass(frozen=True)
class Teacher:
    """A trained classifier that another learns from.

    Attributes:
        logits: From crops, float [batch, image_size, image_size, 3] RGB 0-255, to logits
            [batch, num_classes], in inference mode.
        image_size: Side of its crops in pixels.
    """

    logits: Logits
    image_size: int


def load_teacher(
    path: Path,
    class_names: Sequence[str],
    padding: float,
    square: bool,
    split: Mapping[str, str],
    mixed_precision: str = "auto",
) -> Teacher:
    """Load a classifier that may teach: it answers the same question and has seen no test face.

    Args:
        path: A `.keras` file of a training.
        class_names: The student's classes.
        padding: How the student's crops are cut.
        square: Likewise.
        split: Digests of the student's split, which must be the teacher's in all parts: of one
            that has learnt from validation faces, these would not say how well the student learns.
        mixed_precision: See `devices.precision_policy`.

    Raises:
        ModelError: It is no classifier of this project, or may not teach.
    """
    model, card = load_model(path)
    expected = {
        "classes": (tuple(class_names), card.class_names),
        "padding": (padding, card.padding),
        "square": (square, card.square),
    }
    for name, (wanted, found) in expected.items():
        if wanted != found:
            raise ModelError(f"--distill: expected a teacher with {name} {wanted}, got {found}")
    if card.training.get("split") != split:
        raise ModelError(
            f"--distill: {path} was trained on another split, so it may have learnt from the test "
            "or validation faces; give its --data-dir, and its results/metrics/split.json with "
            "--split-file, or its --folds and --seed"
        )
    if "temperature" not in card.training:
        raise ModelError(
            f"--distill: the training of {path} has not ended; let its command run to its end first"
        )
    # The student gets its own; with both, rare classes would be favoured twice.
    rescale_logits(model, 1.0, -np.array(card.training.get("logit_offsets", 0.0)))
    return Teacher(_logits(model, card, mixed_precision), card.image_size)


def _logits(model: keras.Model, card: ModelCard, mixed_precision: str) -> Logits:
    """Return the teacher's function: one view, in the precision in which the device is fastest.

    Of many augmented views of a face a student learns what several views at a time would say.
    """
    policy = precision_policy(mixed_precision, is_depthwise(card.model_name))
    with dtype_policy(policy):
        fast = build_model(
            card.model_name,
            card.image_size,
            len(card.class_names),
            same_network(model),
            dense_units=model.get_layer("head_dense").units,
            multi_view=card.multi_view,
            all_views=False,
            is_loaded=False,
        )
    fast.set_weights(model.get_weights())
    teacher = logits_model(fold_batch_norm(fast))
    return lambda images: teacher(images, training=False)


class DistilledModel(keras.Model):
    """What is trained: augmentation, then the student, with the teacher's answer in the loss.

    Its input has the teacher's size. The teacher's answer is in the loss of validation too.

    Args:
        student: Classifier up to its logits.
        augmentation: For crops of the teacher's size.
        teacher: Its logits are learnt; its weights are no part of this model.
    """

    def __init__(self, student: keras.Model, augmentation: keras.Model, teacher: Teacher):
        super().__init__(name="distilled")
        self.student = student
        self.augmentation = augmentation
        size = student.input_shape[1]
        self.scale = keras.layers.Resizing(size, size, antialias=True, dtype="float32")
        # In a function Keras does not find the teacher, so its weights are not saved each epoch.
        self._teach = teacher.logits
        # All variables must be there before an interrupted run's are loaded.
        self(np.zeros((1, teacher.image_size, teacher.image_size, 3), np.float32), training=True)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the student's logits, float32 [batch, num_classes]."""
        views = self.augmentation(images, training=training)
        logits = self.student(self.scale(views), training=training)
        self.add_loss(WEIGHT * distillation_loss(self._teach(views), logits))
        return logits


def distillation_loss(teacher_logits: Any, student_logits: Any) -> Any:
    """Compute the mean Kullback-Leibler divergence of the student's softened answers.

    It is 0 where the teacher is met; its gradient is that of the cross-entropy with it.

    Args:
        teacher_logits: [batch, num_classes]; no gradient flows into them.
        student_logits: [batch, num_classes].

    Returns:
        Scalar, times the squared temperature, which keeps the size of the gradients.
    """
    ops = keras.ops
    teacher = ops.stop_gradient(ops.cast(teacher_logits, "float32"))
    target = ops.log_softmax(teacher / TEMPERATURE)
    answer = ops.log_softmax(ops.cast(student_logits, "float32") / TEMPERATURE)
    divergences = ops.sum(ops.exp(target) * (target - answer), axis=-1)
    return TEMPERATURE**2 * ops.mean(divergences)
