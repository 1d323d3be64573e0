import keras
import numpy as np
import pytest
import tensorflow as tf

from fmd_tf.detector import (
    DetectorCard,
    build_detector,
    cell_boxes,
    face_loss,
    find_faces,
    freeze_first_layers,
    load_detector,
    save_detector,
    scale_photo,
)
from fmd_tf.detector_pipeline import draw_target
from fmd_tf.model import ModelCard, ModelError, load_model, save_model

CARD = DetectorCard(image_size=64, threshold=0.5)


@pytest.fixture(scope="module")
def detector() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_detector("none")


class _Drawn:
    """Stands for a trained network: answers with logits and distances that are given.

    Of the two looks at a photo, 0 at full and 1 at half of the size, it sees faces in one alone.
    """

    def __init__(self, rows: int, columns: int, faces: dict[tuple[int, int], tuple], look: int = 0):
        self.output = np.full((1, rows, columns, 5), -10.0, np.float32)
        for (row, column), (logit, *reach) in faces.items():
            self.output[0, row, column] = [logit, *np.log(reach)]
        self.look, self.looks = look, 0

    def __call__(self, photo: tf.Tensor, training: bool) -> tf.Tensor:
        self.looks += 1
        if (self.looks - 1) % 2 != self.look:
            return tf.fill([1, photo.shape[1] // 4, photo.shape[2] // 4, 5], -10.0)
        assert photo.shape[1:3] == [4 * self.output.shape[1], 4 * self.output.shape[2]]
        return tf.constant(self.output)


def test_the_map_has_a_cell_for_four_pixels(detector):
    for height, width in ((64, 96), (32, 32)):
        output = detector(np.zeros((2, height, width, 3), np.float32))
        assert output.shape == (2, height // 4, width // 4, 5)
        assert output.dtype == tf.float32


def test_from_random_weights_the_first_scores_are_small(detector):
    photo = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    logits, distances = np.split(detector(photo).numpy(), [1], axis=-1)
    assert logits.max() < -4 and np.abs(distances - 1.0).max() < 0.5


def test_the_first_layers_stay_as_they_are():
    model = build_detector("none")
    total = len(model.trainable_variables)
    freeze_first_layers(model)
    # The first convolution, a block of two layers and two of three; each has a kernel and a bias.
    assert len(model.trainable_variables) == total - 2 * (1 + 2 + 3 + 3)
    assert model.get_layer("score").trainable


def test_cell_boxes_reach_from_the_cells_center():
    # Cell (row 1, column 2) has its centre at 2.5, 1.5 cells; 1, 0.5, 2 and 1.5 cells away.
    distances = np.zeros((3, 4, 4), np.float32)
    distances[1, 2] = np.log([1.0, 0.5, 2.0, 1.5])
    assert cell_boxes(tf.constant(distances)).numpy()[1, 2] == pytest.approx([6, 4, 18, 12])


def test_found_boxes_are_in_pixels_of_the_photo():
    # 128x64 photo, scaled to 64x32: a map of 8 rows and 16 columns, a scale of 2 back.
    network = _Drawn(8, 16, {(3, 5): (3.0, 1.5, 1.5, 1.5, 1.5)})
    boxes, scores = find_faces(network, CARD, tf.zeros([64, 128, 3], tf.uint8))
    # Centre 5.5, 3.5 cells = 22, 14 px; 6 px to each side; times 2.
    assert boxes.numpy() == pytest.approx(np.array([[32, 16, 56, 40]]))
    assert scores.numpy() == pytest.approx([1 / (1 + np.exp(-3.0))])


def test_scores_fall_and_doubles_are_dropped():
    near = (2.0, 3, 3, 3, 3)
    network = _Drawn(16, 16, {(4, 4): near, (4, 6): (3.0, 3, 3, 3, 3), (12, 12): (4.0, 1, 1, 1, 1)})
    boxes, scores = find_faces(network, CARD, tf.zeros([64, 64, 3], tf.uint8))
    # Two boxes of 24 px, 8 px apart, share 16 * 24 of 2 * 576 - 384 px: half, not more.
    assert len(boxes) == 3
    crowded = DetectorCard(image_size=64, threshold=0.5, max_overlap=0.4)
    boxes, scores = find_faces(network, crowded, tf.zeros([64, 64, 3], tf.uint8))
    assert len(boxes) == 2
    assert np.all(np.diff(scores) < 0)


@pytest.mark.parametrize(("reach", "found"), [(3.9, 0), (4.1, 1)])
def test_at_half_the_size_only_large_faces_are_found(reach, found):
    # 128x128 photo at 128 and at 64 px: a face of 64 px has 8 cells of the smaller map.
    network = _Drawn(16, 16, {(8, 8): (3.0, reach, reach, reach, reach)}, look=1)
    boxes, _ = find_faces(network, DetectorCard(128), tf.zeros([128, 128, 3], tf.uint8))
    # Centre 8.5 cells = 34 px of 64, 68 of 128.
    low, high = 68 - 8 * reach, 68 + 8 * reach
    assert boxes.numpy() == pytest.approx(np.array([[low, low, high, high]] * found).reshape(-1, 4))


def test_a_face_found_at_both_sizes_is_one():
    photo = tf.zeros([128, 128, 3], tf.uint8)

    class Both:
        def __call__(self, photo, training):
            cells = photo.shape[1] // 4
            reach = cells / 4
            face = (3.0 if cells == 32 else 2.0, reach, reach, reach, reach)
            return _Drawn(cells, cells, {(cells // 2, cells // 2): face})(photo, training)

    boxes, scores = find_faces(Both(), DetectorCard(128), photo)
    assert len(boxes) == 1 and scores.numpy() == pytest.approx([1 / (1 + np.exp(-3.0))])


def test_boxes_end_at_the_photo():
    network = _Drawn(16, 16, {(0, 0): (3.0, 5, 5, 2, 2)})
    boxes, _ = find_faces(network, CARD, tf.zeros([64, 64, 3], tf.uint8))
    assert boxes.numpy() == pytest.approx(np.array([[0, 0, 10, 10]]))


def test_nothing_above_the_threshold_is_no_face():
    network = _Drawn(16, 16, {(4, 4): (-0.1, 2, 2, 2, 2)})
    boxes, scores = find_faces(network, CARD, tf.zeros([64, 64, 3], tf.uint8))
    assert boxes.shape == (0, 4) and scores.shape == (0,)
    boxes, _ = find_faces(network, CARD, tf.zeros([64, 64, 3], tf.uint8), threshold=0.4)
    assert len(boxes) == 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (64, 64)),
        ((100, 50), (64, 32)),
        ((10, 640), (32, 64)),  # Never less than the coarsest stride.
        ((1, 1), (64, 64)),
        ((48, 64), (64, 64)),  # 48 rounds half to even: 1.5 -> 2.
    ],
)
def test_photos_are_scaled_to_multiples_of_32(size, expected):
    scaled = scale_photo(tf.zeros([*size, 3], tf.uint8), 64)
    assert tuple(scaled.shape) == (*expected, 3)


def test_the_same_faces_are_found_eagerly_and_in_a_graph(detector):
    photo = tf.constant(np.random.default_rng(0).integers(0, 256, (50, 70, 3)), tf.uint8)
    card = DetectorCard(image_size=64, threshold=0.001)
    graph = tf.function(
        lambda photo: find_faces(detector, card, photo),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)],
    )
    for eager, traced in zip(find_faces(detector, card, photo), graph(photo), strict=True):
        assert eager.numpy() == pytest.approx(traced.numpy(), abs=1e-3)


def test_the_loss_is_lowest_for_the_right_answer_and_finite_for_boxes_outside():
    boxes = tf.constant([[8.0, 8.0, 24.0, 24.0], [200.0, 200.0, 240.0, 240.0]])
    target = draw_target(boxes, tf.ones([2]), 64)[None]
    heat = np.clip(target.numpy()[..., 0], 1e-7, 1 - 1e-7)
    center = 4 * (np.stack(np.meshgrid(np.arange(16), np.arange(16)), -1) + 0.5)
    known = target.numpy()[0, ..., 1:5]
    reach = np.concatenate([center - known[..., :2], known[..., 2:] - center], -1) / 4
    logits = np.log(heat / (1 - heat))[..., None]
    distances = np.log(np.maximum(reach, 1e-3))[None]
    answer = np.concatenate([logits, distances], axis=-1).astype(np.float32)
    wrong = answer + np.float32(2.0)
    graph = tf.function(face_loss)
    assert np.isfinite(graph(target, answer)) and graph(target, answer) < graph(target, wrong)


@pytest.mark.parametrize(
    ("first", "second"),
    [((7, 7), (6, 7)), ((6, 7), (2, 12))],
    ids=["only the centre is a face", "beside it a score costs less than far away"],
)
def test_a_high_score_costs_less(first, second):
    target = draw_target(tf.constant([[16.0, 16.0, 46.0, 46.0]]), tf.ones([1]), 64)[None]

    def loss(cell):
        output = np.zeros((1, 16, 16, 5), np.float32)
        output[..., 0] = -5.0
        output[0, cell[0], cell[1], 0] = 5.0
        return float(face_loss(target, tf.constant(output)))

    assert loss(first) < 0.7 * loss(second)


def test_a_run_that_goes_on_needs_the_network_and_not_the_file():
    shapes = [weight.shape for weight in build_detector("gone.onnx", is_loaded=False).weights]
    assert shapes == [weight.shape for weight in build_detector("none").weights]
    activations = []
    for weights in ("imagenet", "centerface", "none", "gone.weights.h5"):
        layers = build_detector(weights, is_loaded=False).layers
        first = next(each for each in layers if isinstance(each, keras.layers.Conv2D))
        activations.append(first.activation.__name__)
    assert activations == ["relu6", "relu", "relu", "relu6"]


def test_the_weights_of_mobilenet_give_what_keras_makes_of_them(tmp_path):
    """The first layer sees the same windows; in later ones Keras pads otherwise."""
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    norm = backbone.get_layer("bn_Conv1")
    norm.set_weights([np.random.default_rng(2).uniform(0.5, 1.5, 32) for _ in range(4)])
    backbone.save_weights(tmp_path / "mobilenet.weights.h5")
    model = build_detector(str(tmp_path / "mobilenet.weights.h5"))
    photo = np.random.default_rng(1).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    first = keras.Model(backbone.input, backbone.get_layer("Conv1_relu").output)
    expected = first(photo / 127.5 - 1.0, training=False).numpy()
    convolution = next(each for each in model.layers if isinstance(each, keras.layers.Conv2D))
    # Our cell i looks at the pixels 2i - 1 to 2i + 1, and theirs at 2i to 2i + 2.
    moved = np.roll(photo, -1, axis=(1, 2))
    seen = keras.Model(model.input, convolution.output)(moved).numpy()
    inner = np.s_[:, 1:-1, 1:-1]
    assert seen[inner] == pytest.approx(expected[inner], abs=1e-4)


def test_a_saved_detector_comes_back(detector, tmp_path):
    card = DetectorCard(image_size=64, threshold=0.25, training={"seed": 3})
    path = tmp_path / "detector.keras"
    save_detector(detector, card, path)
    loaded, loaded_card = load_detector(path)
    assert loaded_card == card
    photo = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    assert loaded(photo).numpy() == pytest.approx(detector(photo).numpy(), abs=1e-5)


def test_a_file_of_another_kind_is_named(detector, tmp_path):
    save_detector(detector, CARD, tmp_path / "detector.keras")
    with pytest.raises(ModelError, match="is a detector, expected a classifier"):
        load_model(tmp_path / "detector.keras")
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    save_model(classifier, ModelCard(("a", "b"), 32), tmp_path / "classifier.keras")
    with pytest.raises(ModelError, match="is a classifier, expected a detector"):
        load_detector(tmp_path / "classifier.keras")
    with pytest.raises(ModelError, match=r"no detector .*; train one with"):
        load_detector(tmp_path / "none.keras")
