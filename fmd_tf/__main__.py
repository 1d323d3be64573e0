"""List the commands: `python -m fmd_tf`."""

COMMANDS = {
    "train": "train, evaluate and export a face-mask classifier",
    "evaluate": "score a trained classifier on a VOC folder",
    "compare": "put runs on the same faces beside one another",
    "label_noise": "list labels that every model contradicts, and sort the mistakes",
    "train_detector": "train and evaluate a face detector",
    "evaluate_detector": "score face detectors on annotated photos",
    "predict": "find and label the faces of photos, folders and video",
    "export": "write a model for serving, or in another format",
    "serve": "serve a SavedModel over TF Serving's REST endpoint, and a page",
    "sample_data": "draw a small data set",
    "benchmark": "measure input, training, formats, serving and photos on this machine",
}

if __name__ == "__main__":
    print("Commands of fmd_tf; python -m fmd_tf.COMMAND --help has the flags of each:\n")
    for name, text in COMMANDS.items():
        print(f"  {name:18} {text}")
