"""Face-mask classification on Keras 3 and TensorFlow, from VOC annotations to a served model."""

CLASS_NAMES = ("with_mask", "without_mask", "mask_weared_incorrect")
"""Classes of the Kaggle data set, spelt as there; a label is an index into this tuple."""
