"""Asks the reader of a Colab notebook for a photo. Outside Colab there is nobody to ask."""

from __future__ import annotations

import base64

# A camera needs a click and a permission, both in the reader's browser; "" stands for neither.
_CAMERA = """
(async () => {
  let stream;
  try { stream = await navigator.mediaDevices.getUserMedia({video: true}); } catch { return ""; }
  const video = document.createElement("video");
  const button = document.createElement("button");
  button.textContent = "Take a photo";
  video.srcObject = stream;
  document.querySelector("#output-area").append(video, document.createElement("br"), button);
  await video.play();
  google.colab.output.setIframeHeight(document.documentElement.scrollHeight, true);
  await new Promise((resolve) => { button.onclick = resolve; });
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  stream.getTracks().forEach((track) => track.stop());
  video.remove();
  button.remove();
  return canvas.toDataURL("image/jpeg", 0.9);
})()
"""


def ask_for_photo(camera: bool = False) -> bytes | None:
    """Let the reader upload a photo or take one.

    Args:
        camera: Take a photo instead of uploading one.

    Returns:
        The encoded photo; None outside Colab, without a camera or its permission, or where
        nothing was chosen.
    """
    try:
        from google.colab import files, output
    except ImportError:
        return None
    if camera:
        _, _, encoded = output.eval_js(_CAMERA).partition(",")
        return base64.b64decode(encoded) or None
    return next(iter(files.upload().values()), None)
