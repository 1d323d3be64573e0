"""The page in a real browser, against the real server."""

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from fmd_tf import CLASS_NAMES
from fmd_tf.servable import ModelVersions
from tests.serving import Running, running

BOXES = [[10.0, 20.0, 60.0, 80.0], [100.0, 30.0, 130.0, 60.0]]


def _write_model(folder: Path, with_photo: bool = True) -> Path:
    """Write a model that finds two faces in a bright photo and none in a dark one."""

    def photo(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.io.decode_image(tf.reshape(image_bytes, [1])[0], channels=3)
        count = tf.where(tf.reduce_mean(tf.cast(pixels, tf.float32)) > 40.0, 2, 0)
        return {
            "boxes": tf.constant(BOXES)[:count],
            "face_scores": tf.constant([0.9, 0.8])[:count],
            "label": tf.constant(["with_mask", "mask_weared_incorrect"])[:count],
            "score": tf.constant([0.97, 0.61])[:count],
            "probabilities": tf.constant([[0.97, 0.02, 0.01], [0.2, 0.19, 0.61]])[:count],
            "class_names": tf.tile(tf.constant([CLASS_NAMES]), [count, 1]),
        }

    module = tf.Module()
    function = tf.function(photo, input_signature=[tf.TensorSpec(None, tf.string, "image_bytes")])
    name = "photo" if with_photo else "serving_default"
    tf.saved_model.save(module, str(folder / "1"), signatures={name: function})
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    models = {}
    for name, with_photo in (("doors & <b>", True), ("crops", False)):
        models[name] = ModelVersions(_write_model(folder / name, with_photo), name)
        models[name].sync()
    with running(models) as running_server:
        yield running_server
    for model in models.values():
        model.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium and chromedriver: install the packages chromium-driver, chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_window_size(1000, 900)
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium: webdriver.Chrome, server: Running) -> webdriver.Chrome:
    chromium.get(f"{server.url}/")
    return chromium


def _photo_file(folder: Path, name: str = "photo.png", brightness: int = 200) -> Path:
    path = folder / name
    Image.fromarray(np.full((120, 160, 3), brightness, np.uint8)).save(path)
    return path


def _status(page: webdriver.Chrome, *expected: str) -> str:
    """Wait until the status line says all of this."""
    element = page.find_element(By.ID, "status")

    def said(_: object) -> bool:
        return all(text in element.text for text in expected)

    try:
        WebDriverWait(page, 20, poll_frequency=0.05).until(said)
    except Exception as error:
        raise AssertionError(f"expected {expected}, the page says {element.text!r}") from error
    return element.text


def _choose(page: webdriver.Chrome, path: Path) -> None:
    page.find_element(By.ID, "file").send_keys(str(path))


def _rows(page: webdriver.Chrome) -> list[list[str]]:
    rows = page.find_elements(By.CSS_SELECTOR, "#faces tr")
    return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]


def test_an_uploaded_photo_is_labelled(page, tmp_path) -> None:
    _choose(page, _photo_file(tmp_path))
    assert "ms" in _status(page, "2 faces")
    assert _rows(page) == [
        ["1", "with mask", "0.970", "0.900", "10, 20, 60, 80"],
        ["2", "mask weared incorrect", "0.610", "0.800", "100, 30, 130, 60"],
    ]
    counts = [each.text for each in page.find_elements(By.CSS_SELECTOR, "#counts li")]
    assert counts == ["1 with mask", "0 without mask", "1 mask weared incorrect"]


def test_the_boxes_are_drawn_where_they_are(page, tmp_path) -> None:
    _choose(page, _photo_file(tmp_path))
    _status(page, "2 faces")
    # The left border of the first box is blue, a colour that the grey photo does not have.
    color = page.execute_script(
        "const c = document.getElementById('picture'), s = c.width / 160;"
        "return [...c.getContext('2d').getImageData(10 * s, 50 * s, 1, 1).data]"
    )
    red, green, blue, _ = color
    assert red < 50 < green < blue


def test_a_tall_photo_has_the_pixels_that_are_shown(page, tmp_path) -> None:
    Image.fromarray(np.full((600, 100, 3), 200, np.uint8)).save(tmp_path / "tall.png")
    _choose(page, tmp_path / "tall.png")
    _status(page, "2 faces")
    width, shown_height = page.execute_script(
        "const c = document.getElementById('picture');"
        "return [c.width, c.getBoundingClientRect().height * devicePixelRatio]"
    )
    # It fills the height; more pixels than that would make the labels too small to read.
    assert width == pytest.approx(shown_height * 100 / 600, abs=1)


def test_a_dropped_photo_is_labelled(page, tmp_path) -> None:
    data = list(_photo_file(tmp_path).read_bytes())
    page.execute_script(
        "const d = new DataTransfer();"
        "d.items.add(new File([new Uint8Array(arguments[0])], 'p.png', {type: 'image/png'}));"
        "document.getElementById('drop').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: d, bubbles: true, cancelable: true}))",
        data,
    )
    _status(page, "2 faces")


def test_the_camera_gives_a_photo(page) -> None:
    page.find_element(By.ID, "camera").click()
    _status(page, "camera is on")
    WebDriverWait(page, 10).until(
        lambda _: page.execute_script("return document.getElementById('video').videoWidth > 0")
    )
    page.find_element(By.ID, "shoot").click()
    _status(page, "2 faces")
    page.find_element(By.ID, "live").click()
    _status(page, "2 faces")
    page.find_element(By.ID, "camera").click()
    assert not page.find_element(By.ID, "video").is_displayed()


def test_live_answers_after_it_was_off_and_on(page) -> None:
    """Two loops at once would stop each other's requests for ever."""
    page.find_element(By.ID, "camera").click()
    _status(page, "camera is on")
    page.execute_script(
        """
        const send = window.fetch;  // A model takes longer than a shot; that of this test does not.
        window.fetch = async (url, options) => {
          await new Promise((resolve) => setTimeout(resolve, 300));
          return send(url, options);
        };
        window.answers = 0;
        const status = document.getElementById("status");
        const count = () => { window.answers += /faces, answered/.test(status.textContent); };
        new MutationObserver(count).observe(status, { childList: true });
        """
    )
    live = page.find_element(By.ID, "live")
    for _ in range(5):
        live.click()
    answered = lambda _: page.execute_script("return window.answers") >= 3  # noqa: E731
    WebDriverWait(page, 15).until(answered)
    page.find_element(By.ID, "camera").click()
    assert not page.find_element(By.ID, "video").is_displayed()


def test_no_face_is_an_answer(page, tmp_path) -> None:
    _choose(page, _photo_file(tmp_path, "dark.png", brightness=5))
    _status(page, "No face found")
    assert not page.find_element(By.ID, "result").is_displayed()
    assert page.find_element(By.ID, "picture").is_displayed()


def test_what_is_no_image_is_named(page, tmp_path) -> None:
    (tmp_path / "text.png").write_text("no image")
    _choose(page, tmp_path / "text.png")
    _status(page, "not a photo", "JPEG")
    assert "error" in page.find_element(By.ID, "status").get_attribute("class")


def test_a_server_that_is_down_is_named(chromium, tmp_path) -> None:
    folder = _write_model(tmp_path / "face_mask")
    model = ModelVersions(folder, "face_mask")
    model.sync()
    with running({"face_mask": model}) as server:
        chromium.get(f"{server.url}/")
    model.close()
    _choose(chromium, _photo_file(tmp_path))
    _status(chromium, "No answer from", "running?")


def test_a_model_without_detector_is_named(chromium, server, tmp_path) -> None:
    chromium.get(f"{server.url}/?model=crops")
    _choose(chromium, _photo_file(tmp_path))
    _status(chromium, "export it with --detector")


def test_a_model_that_is_not_there_is_named(chromium, server, tmp_path) -> None:
    chromium.get(f"{server.url}/?model=other")
    _choose(chromium, _photo_file(tmp_path))
    _status(chromium, "The server says", "other")


@pytest.mark.parametrize(
    ("status", "said"),
    [(413, "too large"), (429, "too many requests"), (200, "Is it a model server?")],
)
def test_what_a_proxy_says_in_html_is_explained(page, tmp_path, status, said) -> None:
    page.execute_script(
        f"window.fetch = async () => new Response('<html></html>', {{ status: {status} }});"
    )
    _choose(page, _photo_file(tmp_path))
    _status(page, str(status), said)


def test_only_the_last_of_several_photos_is_shown(page, tmp_path) -> None:
    bright, dark = _photo_file(tmp_path), _photo_file(tmp_path, "dark.png", 5)
    for path in (bright, dark, bright, dark):
        _choose(page, path)
    _status(page, "No face found")
    time.sleep(0.5)
    assert "No face found" in _status(page)


def test_the_keyboard_reaches_everything(page) -> None:
    reached = []
    for _ in range(2):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        reached.append(page.switch_to.active_element.get_attribute("id"))
    assert reached == ["file", "camera"]
    page.find_element(By.ID, "camera").send_keys(Keys.ENTER)
    _status(page, "camera is on")
    page.find_element(By.ID, "camera").send_keys(Keys.ENTER)
    _status(page, "camera is off")


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out_sideways(chromium, server, tmp_path, width) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    chromium.get(f"{server.url}/")
    _choose(chromium, _photo_file(tmp_path))
    _status(chromium, "2 faces")
    scroll = chromium.execute_script("return document.documentElement.scrollWidth")
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert scroll <= width


def test_the_console_has_no_complaint(page, tmp_path) -> None:
    page.get_log("browser")
    page.refresh()
    _choose(page, _photo_file(tmp_path))
    _status(page, "2 faces")
    assert page.get_log("browser") == []


def test_the_pages_files_and_headers(server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")):
            answer = client.get(path)
            assert answer.status_code == 200 and kind in answer.headers["content-type"]
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            head = client.head(path)
            assert head.headers["content-length"] == answer.headers["content-length"]
            assert head.content == b""
        assert 'data-model="doors &amp; &lt;b&gt;"' in client.get("/?model=x").text
        assert client.post("/").status_code == 404
        assert client.get("/page.html").status_code == 404


def test_a_photo_turned_by_exif_is_drawn_upright(page, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.new("RGB", (120, 160), "gray").transpose(Image.Transpose.ROTATE_90).save(
        stored, "JPEG", exif=exif
    )
    (tmp_path / "turned.jpg").write_bytes(stored.getvalue())
    _choose(page, tmp_path / "turned.jpg")
    _status(page, "2 faces")
    canvas = page.find_element(By.ID, "picture")
    width, height = (int(canvas.get_attribute(name)) for name in ("width", "height"))
    assert width / height == pytest.approx(120 / 160, rel=0.01)
