"""Face-mask classification on Keras 3 and TensorFlow, from VOC annotations to a served model."""

import os

# TensorFlow prints a screen of notes about the machine at import; errors still come as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CLASS_NAMES = ("with_mask", "without_mask", "mask_weared_incorrect")
"""Classes of the Kaggle data set, spelt as there; a label is an index into this tuple."""

UNCERTAIN = "uncertain"
"""Label of a face whose likeliest class is not likely enough; no class has this name."""

MIN_IMAGE_SIZE = 32
"""Side in pixels of the smallest input that Keras' applications take."""

MIN_MULTI_VIEW_SIZE = 38
"""The same for classifiers that average views, of which the smallest backbone input is 6/7."""
