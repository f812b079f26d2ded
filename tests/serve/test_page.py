"""The page in a headless Chromium: drop an image, move the sliders, see the pixels change."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_enhance.serve.page import ASSETS
from tests.serve.conftest import TOKEN, png, portrait
from tests.serve.test_restore import wait_for
from tests.serve.test_videos import YUNET, write_clip

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = os.environ.get("MUSETALK_ENHANCE_SCREENSHOTS")
"""A folder in which screenshots are kept; by default the test's own."""


def test_the_page_loads_nothing_from_elsewhere(serve):
    with serve(token=TOKEN) as client:
        del client.headers["authorization"]
        page = client.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert links and all(link.startswith(("/", "data:")) for link in links)
        for link in links:
            assert link == "data:," or client.get(link).status_code == 200
        for name in ("index.html", "..%2fsettings.py", "x"):
            assert client.get(f"/assets/{name}").status_code == 404
        example = client.get("/example.jpg")
    text = "".join(path.read_text(encoding="utf-8") for path in ASSETS.iterdir())
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert example.status_code in (200, 404)


@pytest.fixture
def browser_page(tmp_path):
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(60_000)
        errors: list[str] = []
        outside: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and errors.append(line.text))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("http://127.0.0.1", "blob:", "data:"))
                or outside.append(request.url)
            ),
        )
        yield page
        assert not outside
        assert not [line for line in errors if "status of 4" not in line]  # the test's own
        browser.close()


def screenshot(page, tmp_path: Path, name: str) -> np.ndarray:
    folder = Path(SCREENSHOTS or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return cv2.imdecode(
        np.frombuffer(page.screenshot(path=folder / f"{name}.png"), np.uint8), cv2.IMREAD_COLOR
    )


DROP = """([bytes, name, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  const target = document.getElementById("drop");
  target.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


def drop(page, data: bytes, name: str, kind: str) -> None:
    page.evaluate(DROP, [list(data), name, kind])


def shown(page) -> np.ndarray:
    """The pixels of the comparison as they are on the screen."""
    data = page.locator("#compare").screenshot()
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)


def until(page, expression: str, seconds: float = 60) -> None:
    """Wait for a condition of the page; Playwright's own way is stopped by the page's policy."""
    wait_for(lambda: page.evaluate(expression), seconds)


RECORD = """() => {
  window.words = [];
  const node = document.getElementById("message");
  new MutationObserver(() => words.push(node.textContent)).observe(node, { childList: true });
}"""
"""Collects everything that the page says."""


def slide(page, name: str, value: float) -> None:
    page.locator(name).evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", value
    )


@pytest.mark.slow
def test_drop_an_image_and_move_the_sliders(serve, browser_page, tmp_path):
    page, image = browser_page, portrait(5, 240)
    with serve() as client:
        page.goto(str(client.base_url))
        until(page, "document.getElementById('state').textContent === 'Ready.'")
        until(page, "/restored by/.test(document.getElementById('message').textContent)")
        screenshot(page, tmp_path, "example")
        drop(page, png(image), "face.png", "image/png")
        until(page, "state.name === 'face.png' && state.details?.size_wh[0] === 240")
        until(page, "/restored by/.test(document.getElementById('message').textContent)")
        assert "1 of 1 faces restored by lite" in page.locator("#message").inner_text()
        slide(page, "#slider", 100)
        before = shown(page)
        slide(page, "#slider", 0)
        after = shown(page)
        slide(page, "#slider", 50)
        half = shown(page)
        width = after.shape[1]
        assert np.abs(before - after).max() > 60
        left, right = slice(0, width // 2 - 4), slice(width // 2 + 4, width)
        assert np.abs(half[:, left] - before[:, left]).max() <= 8
        assert np.abs(half[:, right] - after[:, right]).max() <= 8
        slide(page, "#slider", 0)
        slide(page, "#weight", 0)
        until(page, "state.details.face_restoration_weight === 0")
        until(page, "!/Restoring/.test(document.getElementById('message').textContent)")
        assert np.abs(shown(page) - before).mean() < np.abs(after - before).mean() / 4
        page.check("#boxes")
        assert page.locator("#overlay rect").count() == 1
        screenshot(page, tmp_path, "restored")
        page.locator("#tab-view").focus()
        page.keyboard.press("ArrowRight")
        assert "strength: 0" in page.locator("#yaml-text").inner_text()
        assert page.locator("#view").is_hidden()
        screenshot(page, tmp_path, "yaml")
        page.keyboard.press("ArrowLeft")
        page.set_viewport_size({"width": 360, "height": 740})
        narrow = page.evaluate("document.documentElement.scrollWidth")
        assert narrow <= 360, "no sideways scrolling on a phone"
        screenshot(page, tmp_path, "phone")
        drop(page, b"no image", "x.png", "image/png")
        until(page, "/Failed/.test(document.getElementById('message').textContent)")


@pytest.mark.long
@pytest.mark.shared
def test_a_video_is_uploaded_and_its_progress_and_report_are_shown(
    serve, browser_page, shared, tmp_path
):
    page, clip = browser_page, write_clip(tmp_path / "talk.mp4", 17)
    options = {"model": "lite", "backend": "torch", "data_dir": str(tmp_path / "data")}
    with serve(**options, detector_path=str(shared / "weights" / YUNET)) as client:
        page.goto(str(client.base_url))
        until(page, "document.getElementById('state').textContent === 'Ready.'")
        page.check("#report")
        page.evaluate(RECORD)
        page.set_input_files("#file", clip)
        until(page, "!document.getElementById('cancel').hidden")
        assert page.locator("#progress").is_visible()
        until(page, "!document.getElementById('page').hidden", 180)
        words = page.evaluate("words")
        assert "Uploading…" in words and any(re.fullmatch(r"\d+ of 17 frames", w) for w in words)
        pattern = r"\d+ faces in \d+ of 17 frames restored by lite\."
        assert re.fullmatch(pattern, page.locator("#message").inner_text())
        assert page.locator("#progress").is_hidden() and page.locator("#cancel").is_hidden()
        until(page, "document.getElementById('video').videoWidth === 192")
        report = page.frame_locator("#page").locator("h1").first
        assert "talk.mp4, before and after" in report.inner_text()
        with page.expect_download() as download:
            page.click("#download")
        job = page.evaluate("state.job")
        result = client.get(f"/restore/video/{job}/result").content
        assert Path(download.value.path()).read_bytes() == result
        screenshot(page, tmp_path, "video")
