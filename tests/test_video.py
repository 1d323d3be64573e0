import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmd_tf import UNCERTAIN
from fmd_tf.photos import Photo, PhotoError
from fmd_tf.publish import PublishError
from fmd_tf.records import LabelledFace
from fmd_tf.video import (
    FrameClock,
    Tracker,
    VideoError,
    VideoFile,
    VideoSource,
    label_video,
)
from tests.serving import encode
from tests.serving import faces as smooth_images

cv2 = pytest.importorskip("cv2")


def face(box: Sequence[float], with_mask: float = 0.9) -> LabelledFace:
    probabilities = {"with_mask": with_mask, "without_mask": 1 - with_mask}
    best = max(probabilities, key=probabilities.__getitem__)
    return LabelledFace(tuple(box), 0.9, best, best, probabilities[best], probabilities)


def write_video(path: Path, frames: np.ndarray, rate: float = 10.0) -> Path:
    size = (frames.shape[2], frames.shape[1])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    return path


def test_a_face_keeps_its_number_and_moves_smoothly():
    tracker = Tracker(new_share=0.5)
    assert tracker.update([face((0, 0, 10, 10))])[0].track == 1
    (moved,) = tracker.update([face((2, 0, 12, 10))])
    assert (moved.track, moved.box) == (1, (1.0, 0.0, 11.0, 10.0))  # Half of the way.


def test_a_face_that_goes_on_is_followed_without_lag():
    """At 12 pixels a frame a face of 10, grown to 20, overlaps its last place by 8 / 32 only."""
    tracker = Tracker(min_overlap=0.3, new_share=0.6)
    positions = [0, 6, 14, 24, 36, 48, 60, 72, 84, 96, 108, 120]
    found = [tracker.update([face((x, 0, x + 10, 10))]) for x in positions]
    assert {each.track for each, *_ in found} == {1} and all(len(each) == 1 for each in found)
    assert found[-1][0].box[0] == pytest.approx(120, abs=0.5)
    # Missed, it goes on by about 12 a frame.
    assert tracker.update([])[0].box[0] == pytest.approx(132, abs=1.0)


def test_probabilities_are_smoothed_and_one_frame_changes_no_label():
    tracker = Tracker(confidence_threshold=0.6, new_share_probabilities=0.25)
    tracker.update([face((0, 0, 10, 10), with_mask=0.9)])
    (one,) = tracker.update([face((0, 0, 10, 10), with_mask=0.1)])
    # 0.25 * 0.1 + 0.75 * 0.9 = 0.7
    assert one.label == "with_mask" and one.confidence == pytest.approx(0.7)
    (two,) = tracker.update([face((0, 0, 10, 10), with_mask=0.1)])
    # 0.25 * 0.1 + 0.75 * 0.7 = 0.55
    assert (two.label, two.class_name) == (UNCERTAIN, "with_mask")
    (three,) = tracker.update([face((0, 0, 10, 10), with_mask=0.1)])
    # 0.25 * 0.1 + 0.75 * 0.55 = 0.4375
    assert three.class_name == "without_mask" and three.confidence == pytest.approx(0.5625)


def test_a_face_that_is_missed_is_remembered_for_a_while():
    tracker = Tracker(memory=2)
    for _ in range(2):
        tracker.update([face((0, 0, 10, 10))])
    for _ in range(2):
        (remembered,) = tracker.update([])
        assert not remembered.seen and remembered.box == (0, 0, 10, 10)
    (back,) = tracker.update([face((0, 0, 10, 10))])
    assert back.seen and back.track == 1
    for _ in range(2):
        tracker.update([])
    assert tracker.update([]) == []
    assert tracker.update([face((0, 0, 10, 10))])[0].track == 2


def test_faces_that_meet_keep_their_numbers():
    """Two faces side by side move right by 3: the greedy choice would give 1 the box of 2."""
    tracker = Tracker(new_share=1.0)
    tracker.update([face((0, 0, 10, 10)), face((5, 0, 15, 10))])
    # Grown to 20 pixels, overlaps: 1 with (3..13) 17/23, with (8..18) 12/28; 2 with (3..13)
    # 18/22, with (8..18) 17/23. Greedy: 2 takes (3..13), in sum 1.25; the best sum is 1.48.
    found = tracker.update([face((8, 0, 18, 10)), face((3, 0, 13, 10))])
    assert {each.track: each.box[0] for each in found} == {1: 3.0, 2: 8.0}


def test_a_face_that_was_found_once_is_not_remembered():
    tracker = Tracker(memory=5)
    tracker.update([face((0, 0, 10, 10))])
    assert tracker.update([]) == []


def test_another_face_far_away_is_another_number():
    tracker = Tracker(memory=0)
    tracker.update([face((0, 0, 10, 10))])
    assert [each.track for each in tracker.update([face((50, 0, 60, 10))])] == [2]


def test_a_video_is_labelled_frame_by_frame(tmp_path: Path):
    images = smooth_images(5, shape=(48, 64))
    source = VideoSource(write_video(tmp_path / "in.mp4", images))
    assert (source.frame_rate, source.num_frames) == (10.0, 5)
    shapes = []

    def label(photo: Photo) -> list[LabelledFace]:
        shapes.append(photo.pixels.shape)
        # The codec loses something; red and blue in each other's place would be more.
        assert abs(photo.pixels.astype(int) - images[len(shapes) - 1]).mean() < 12
        return [face((8, 8, 24, 24))]

    output = VideoFile(tmp_path / "out" / "in.mp4", source.frame_rate)
    records = list(label_video(source, label, Tracker(), output))
    output.finish()
    assert shapes == [(48, 64, 3)] * 5
    assert [(each.frame, each.seconds) for each in records] == [(i, i / 10) for i in range(5)]
    assert [each.faces[0].track for each in records] == [1] * 5
    assert records[0].to_json()["faces"][0]["seen"] is True
    written = VideoSource(tmp_path / "out" / "in.mp4")
    assert [frame.pixels.shape for frame in written] == [(192, 256, 3)] * 5  # Enlarged by 4.
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.mp4"]


def test_uneven_frames_keep_their_time(tmp_path: Path):
    """Phones and screen recorders take frames when there is something new."""
    first, *others = map(Image.fromarray, smooth_images(6, shape=(48, 64)))
    durations = [100, 100, 100, 500, 500, 100]
    path = tmp_path / "in.gif"
    first.save(path, save_all=True, append_images=others, duration=durations)
    source = VideoSource(path)
    output = VideoFile(tmp_path / "out.mp4", source.frame_rate)
    records = list(label_video(source, lambda _: [], Tracker(), output))
    output.finish()
    assert [record.seconds for record in records] == [0.0, 0.1, 0.2, 0.3, 0.8, 1.3]
    # Of its even frames the one that is shown at 1.3 s is the last.
    written = VideoSource(tmp_path / "out.mp4")
    assert written.num_frames == 1 + round(1.3 * written.frame_rate)


def _element(name: str, content: bytes) -> bytes:
    """Return an element of Matroska (RFC 9559) with four bytes of length (RFC 8794)."""
    return bytes.fromhex(name) + (len(content) | 1 << 28).to_bytes(4, "big") + content


def write_webm(path: Path, images: np.ndarray, times: Sequence[int], seconds: float | None) -> Path:
    """Write what browsers record: frames with times in milliseconds, and no rate."""
    size = _element("B0", images.shape[2].to_bytes(2, "big"))
    size += _element("BA", images.shape[1].to_bytes(2, "big"))
    track = _element("D7", b"\1") + _element("73C5", b"\1") + _element("83", b"\1")
    track += _element("86", b"V_VP8") + _element("E0", size)
    length = _element("4489", struct.pack(">d", 1000 * seconds)) if seconds else b""
    # A lossy WebP is a head of 20 bytes and a key frame of VP8 (RFC 9649).
    blocks = [
        _element("A3", b"\x81" + struct.pack(">hB", time, 0x80) + encode(image, "WEBP")[20:])
        for image, time in zip(images, times, strict=True)
    ]
    segment = _element("1549A966", length) + _element("1654AE6B", _element("AE", track))
    segment += _element("1F43B675", _element("E7", b"\0") + b"".join(blocks))
    path.write_bytes(
        _element("1A45DFA3", _element("4282", b"webm")) + _element("18538067", segment)
    )
    return path


@pytest.mark.parametrize("seconds", [None, 3.0], ids="live with-length".split())
def test_a_video_without_a_rate_keeps_its_own_times(tmp_path: Path, seconds: float | None):
    """OpenCV says 1000 frames a second then, and frames by it: 3000, or less than none."""
    times = np.cumsum([0, *np.random.default_rng(0).integers(11, 60, 19)]).tolist()
    images = smooth_images(20, shape=(48, 64))
    source = VideoSource(write_webm(tmp_path / "in.webm", images, times, seconds))
    assert (source.frame_rate, source.num_frames) == (25.0, None)
    assert [frame.seconds for frame in source] == pytest.approx([each / 1000 for each in times])


def test_times_that_a_file_cannot_have_are_not_taken(tmp_path: Path):
    source = VideoSource(write_video(tmp_path / "in.mp4", smooth_images(4)))
    times = iter([0.0, 0.0, 1e9, 0.15, 0.0])  # None, one after the end, one before the last.
    source._position = lambda: next(times)
    assert [frame.seconds for frame in source] == [0.0, 0.1, 0.2, 0.3]


def test_between_frames_that_are_looked_at_faces_go_on(tmp_path: Path):
    source = VideoSource(write_video(tmp_path / "in.mp4", smooth_images(9, shape=(48, 64))))
    looks = []

    def label(photo: Photo) -> list[LabelledFace]:
        looks.append(len(looks))
        x = 6 * looks[-1]  # 6 pixels in 3 frames.
        return [face((x, 8, x + 16, 24))]

    tracker = Tracker(new_share=1.0)  # Then the speed is the last difference, a frame.
    records = list(label_video(source, label, tracker, None, label_every=3))
    faces = [record.faces[0] for record in records]
    assert looks == [0, 1, 2]
    assert [each.seen for each in faces] == [True, False, False] * 3
    assert [each.track for each in faces] == [1] * 9
    assert [each.box[0] for each in faces] == [0, 0, 0, 6, 8, 10, 12, 14, 16]


def test_memory_is_of_frames_however_few_are_looked_at(tmp_path: Path):
    """A face that leaves after ten frames is shown five more, at the most."""
    for every, last in ((1, 14), (2, 13), (5, 14)):
        source = VideoSource(write_video(tmp_path / "in.mp4", smooth_images(30)))
        looked = iter(range(0, 30, every))

        def label(photo: Photo, looked=looked) -> list[LabelledFace]:
            return [face((8, 8, 24, 24))] if next(looked) < 10 else []

        records = list(label_video(source, label, Tracker(memory=5), None, label_every=every))
        shown = [record.frame for record in records if record.faces]
        assert shown == list(range(last + 1)), every


def test_a_rate_that_mpeg_4_cannot_count_is_rounded(tmp_path: Path):
    output = VideoFile(tmp_path / "a.mp4", 119.963)
    output.add(Image.new("RGB", (32, 32)))
    assert output.finish()
    assert VideoSource(tmp_path / "a.mp4").frame_rate == pytest.approx(120)
    assert not VideoFile(tmp_path / "b.mp4", 10.0).finish()  # Without a frame there is no file.


class Camera(BaseHTTPRequestHandler):
    """Sends a hundred frames as JPEG, thirty a second, each brighter than the one before."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for brightness in range(0, 200, 2):
            frame = encode(np.full((48, 64, 3), brightness, np.uint8), "JPEG")
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + frame + b"\r\n")
            except ConnectionError:
                return
            time.sleep(1 / 30)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def camera_url() -> Iterator[str]:
    """A network camera with a password."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_address[1]}/stream.mjpg"
        server.shutdown()


def test_a_camera_that_is_labelled_slowly_is_seen_as_it_is_and_keeps_its_time(
    camera_url: str, tmp_path: Path
):
    source = VideoSource(camera_url)
    assert source.is_camera and source.num_frames is None
    assert "secret" not in source.name and source.name.startswith("http://127.0.0.1:")
    brightness = []

    def label(photo: Photo) -> list[LabelledFace]:
        brightness.append(photo.pixels.mean())
        time.sleep(0.4)
        return []

    output = VideoFile(tmp_path / "out.mp4", source.frame_rate)
    records = []
    with pytest.raises(VideoError, match="gives no more frames"):
        records += label_video(source, label, Tracker(), output)
    output.finish()
    # While a frame is labelled the camera sends twelve: these are not seen later, but left out.
    assert 2 < len(records) < 50
    assert brightness == sorted(brightness) and max(np.diff(brightness)) > 10
    times = [datetime.fromisoformat(record.to_json()["time"]) for record in records]
    assert times == sorted(times) and times[0].tzinfo is not None
    written = list(VideoSource(tmp_path / "out.mp4"))
    assert len(written) == 1 + round(source.frame_rate * records[-1].seconds)


def test_a_frame_that_is_refused_does_not_end_the_video(tmp_path: Path):
    def refuse(photo: Photo) -> list[LabelledFace]:
        raise PhotoError("too large")

    source = VideoSource(write_video(tmp_path / "in.mp4", smooth_images(2)))
    records = list(label_video(source, refuse, Tracker(), None))
    assert [each.error for each in records] == ["too large"] * 2


def test_closing_the_window_ends_it(tmp_path: Path):
    source = VideoSource(write_video(tmp_path / "in.mp4", smooth_images(4)))
    shown: list[Image.Image] = []

    def show(picture: Image.Image) -> bool:
        shown.append(picture)
        return len(shown) < 2

    records = list(label_video(source, lambda _: [], Tracker(), None, show))
    assert len(records) == len(shown) == 2


def test_two_runs_do_not_write_one_video(tmp_path: Path):
    first = VideoFile(tmp_path / "a.mp4", 10.0)
    first.add(Image.new("RGB", (32, 32)))
    with pytest.raises(PublishError, match=r"another run writes to .*\.a\.mp4\.lock is locked"):
        VideoFile(tmp_path / "a.mp4", 10.0)
    assert first.finish()
    VideoFile(tmp_path / "a.mp4", 10.0).close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_unfinished_file_leaves_nothing(tmp_path: Path):
    output = VideoFile(tmp_path / "a.mp4", 10.0)
    output.add(Image.new("RGB", (33, 21)))  # Odd sizes are cut to even ones.
    output.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_cut_off_is_not_put_into_place(tmp_path: Path):
    """OpenCV does not tell of a full disk."""
    (tmp_path / "a.mp4").write_text("before")
    output = VideoFile(tmp_path / "a.mp4", 10.0)
    for _ in range(3):
        output.add(Image.new("RGB", (32, 32)))
    output._num_frames += 1  # As if one had not found room.
    with pytest.raises(VideoError, match=r"a\.mp4 could not be written to its end"):
        output.finish()
    output.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "before"


def test_names_that_opencv_takes_for_something_else(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_video(tmp_path / "in.mp4", smooth_images(2)).rename("a:b.mp4")
    assert len(list(VideoSource(path))) == 2
    output = VideoFile(Path("12:30.mp4"), 10.0)
    output.add(Image.new("RGB", (32, 32)))
    assert output.finish()
    path = path.rename(os.fsdecode(b"caf\xe9.mp4"))
    with pytest.raises(VideoError, match=r"'caf\\udce9\.mp4': OpenCV takes names in UTF-8 only"):
        VideoSource(path)


def test_secrets_of_a_cameras_address_are_not_in_its_name(camera_url: str):
    query = "?channel=2&user=me&pwd=hidden&size=640#x"
    source = VideoSource(camera_url + query)
    source.close()
    assert source.name.endswith("/stream.mjpg?channel=2&user=&pwd=&size=640#x")
    assert "secret" not in source.name


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4"):
        VideoSource(tmp_path / "a.mp4")


def test_a_video_without_frames_and_a_camera_that_is_not_there(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", smooth_images(1)[:0])
    with pytest.raises(VideoError, match=r"a\.mp4"):
        VideoSource(path)
    with pytest.raises(VideoError, match="camera 77 cannot be opened"):
        VideoSource(77)


def test_opencv_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(VideoError, match=r'-m pip install -e "\.\[video\]"'):
        VideoSource(tmp_path / "a.mp4")


def test_the_clock_counts_frames_a_second():
    clock = FrameClock()
    assert clock.rate == 0.0
    for _ in range(3):
        clock.tick()
    assert clock.rate > 100
