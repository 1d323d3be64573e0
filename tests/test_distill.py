"""A student learns from a teacher that may teach it, and only from such a one."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from fmd_tf import CLASS_NAMES, train
from fmd_tf.augment import build_augmentation
from fmd_tf.calibration import rescale_logits
from fmd_tf.distill import WEIGHT, DistilledModel, Teacher, distillation_loss, load_teacher
from fmd_tf.model import ModelCard, ModelError, build_model, load_model, logits_model, save_model
from tests.serving import faces, tiny_model

pytestmark = pytest.mark.usefixtures("shallow_backbone")
CARD = ModelCard(
    CLASS_NAMES, 32, padding=0.1, training={"split": {"test": "abc"}, "temperature": 1.0}
)


def _named_logits() -> keras.Model:
    """A classifier whose logits layer has the name that training looks for."""
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 8, strides=8, activation="relu")(image / 255.0)
    x = keras.layers.Dense(3, name="logits")(keras.layers.Flatten()(x))
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(x))


def test_the_loss_is_that_of_softened_answers():
    loss = distillation_loss(np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]]))
    # Softened by 2, the teacher says (0.7311, 0.2689), whose entropy is 0.5822, and the student one
    # half of both: log(2) - 0.5822 = 0.1109, times 2 squared.
    assert float(loss) == pytest.approx(0.4438, abs=1e-4)
    # No answer is better than the teacher's.
    assert float(distillation_loss(np.array([[2.0, 0.0]]), np.array([[2.0, 0.0]]))) == 0.0


def test_the_student_learns_the_teachers_answers():
    keras.utils.set_random_seed(0)
    student, images = _named_logits(), faces(32, shape=(48, 48)).astype(np.float32)
    teacher = Teacher(
        lambda batch: keras.ops.ones((keras.ops.shape(batch)[0], 3)) * [6.0, 0, 0], 48
    )
    model = DistilledModel(logits_model(student), build_augmentation(48, 0), teacher)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    uniform = np.full((32, 3), 1 / 3, np.float32)
    first = model.fit(images, uniform, verbose=0).history["loss"][0]
    last = model.fit(images, uniform, epochs=10, verbose=0).history["loss"][-1]
    assert last < first
    # In validation too its answers are compared with the teacher's, and not with the labels alone.
    answers = model.predict(images, verbose=0)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True)(uniform, answers)
    expected += WEIGHT * distillation_loss(teacher.logits(images), answers)
    assert model.evaluate(images, uniform, verbose=0) == pytest.approx(float(expected), rel=1e-4)
    # The labels say nothing, so what it prefers is what the teacher prefers.
    small = faces(32).astype(np.float32)
    assert (model.predict(small, verbose=0).argmax(axis=1) == 0).mean() > 0.9


def test_the_teachers_weights_are_not_the_students():
    teacher = logits_model(_named_logits())
    student = logits_model(_named_logits())
    model = DistilledModel(
        student, build_augmentation(32, 0), Teacher(lambda x: teacher(x, training=False), 32)
    )
    assert len(model.trainable_variables) == len(student.trainable_variables) == 4


@pytest.mark.parametrize("weights", ["none", "centerface"])
def test_what_was_added_for_rare_classes_is_not_taught(weights: str, tmp_path: Path):
    path = tmp_path / "t.keras"
    build = partial(build_model, "mobilenet", 42, 3, weights, multi_view=True, is_loaded=False)
    model = build()
    images = faces(4, shape=(42, 42)).astype(np.float32)
    # What is taught is what it says of one view.
    one_view = build(all_views=False)
    one_view.set_weights(model.get_weights())
    expected = logits_model(one_view)(images, training=False)
    offsets = [0.0, 0.4, 2.0]
    rescale_logits(model, 1.0, np.array(offsets))
    training = {**CARD.training, "logit_offsets": offsets}
    card = replace(CARD, image_size=42, multi_view=True, training=training)
    save_model(model, card, path)
    teacher = load_teacher(path, CLASS_NAMES, CARD.padding, CARD.square, CARD.training["split"])
    np.testing.assert_allclose(teacher.logits(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": ("a", "b", "c")}, "classes"),
        ({"padding": 0.3}, "padding 0.3, got 0.1"),
        ({"square": False}, "square False"),
        ({"split": {"test": "other"}}, "another split"),
        ({"path": Path("missing.keras")}, "missing.keras"),
    ],
)
def test_who_may_not_teach_is_refused(changed: dict, message: str, tmp_path: Path):
    save_model(tiny_model(), CARD, tmp_path / "t.keras")
    settings = {
        "path": tmp_path / "t.keras",
        "class_names": CLASS_NAMES,
        "padding": 0.1,
        "square": True,
        "split": {"test": "abc"},
        **changed,
    }
    with pytest.raises(ModelError, match=message):
        load_teacher(**settings)


def test_a_teacher_without_its_split_is_refused(tmp_path: Path):
    save_model(tiny_model(), replace(CARD, training={}), tmp_path / "t.keras")
    with pytest.raises(ModelError, match="another split"):
        load_teacher(tmp_path / "t.keras", CLASS_NAMES, 0.1, True, {"test": "abc"})


def test_a_teacher_that_is_still_trained_is_refused(tmp_path: Path):
    save_model(
        tiny_model(), replace(CARD, training={"split": {"test": "abc"}}), tmp_path / "t.keras"
    )
    with pytest.raises(ModelError, match="has not ended"):
        load_teacher(tmp_path / "t.keras", CLASS_NAMES, 0.1, True, {"test": "abc"})


def _train(sample_dir: Path, folder: Path, *more: str) -> int:
    return train.main(
        [
            *("--data-dir", str(sample_dir), "--model-name", "mobilenet", "--weights", "none"),
            *("--epochs", "1", "--checkpoint-dir", str(folder / "c")),
            *("--results-dir", str(folder / "r"), "--export-dir", str(folder / "e"), *more),
        ]
    )


def test_training_with_a_teacher(sample_dir: Path, tmp_path: Path, capsys):
    assert _train(sample_dir, tmp_path / "teacher", "--image-size", "48") == 0
    teacher = str(tmp_path / "teacher" / "c" / "best_model.keras")
    split = str(tmp_path / "teacher" / "r" / "metrics" / "split.json")
    distill = ("--image-size", "38", "--distill", teacher, "--seed", "5")
    assert _train(sample_dir, tmp_path / "student", *distill, "--split-file", split) == 0
    card = load_model(tmp_path / "student" / "c" / "best_model.keras")[1]
    assert card.image_size == 38 and card.training["report"]["part"] == "test"
    capsys.readouterr()
    # A student in the teacher's own folder would take its place.
    own = ("--distill", teacher, "--split-file", split, "--overwrite")
    assert _train(sample_dir, tmp_path / "teacher", "--image-size", "38", *own) == 2
    assert "would be written over by its student" in capsys.readouterr().err
    assert _train(sample_dir, tmp_path / "other", *distill) == 2
    assert "another split" in capsys.readouterr().err
    assert not (tmp_path / "other" / "r" / "metrics" / "split.json").exists()
