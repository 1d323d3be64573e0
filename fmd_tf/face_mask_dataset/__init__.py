"""TFDS data set of photos with annotated faces, made from any Pascal VOC folder."""

from fmd_tf.face_mask_dataset.face_mask_dataset_builder import Builder, load_photos

__all__ = ["Builder", "load_photos"]
