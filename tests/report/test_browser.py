"""The pages in headless Chromium: quiet, without requests, and within the width of a laptop and of a phone."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedgs.prediction.ledger import COLUMNS
from fedgs.report.html import write_report
from fedgs.report.predictions import Shown, write_predictions
from fedgs.verdict.judging import compare
from fedgs.verdict.observed import observe
from fedgs.verdict.writing import write_comparison

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra 'test')")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield session
    session.quit()


def write_made_predictions(out):
    """Long names, a failure, and pictures of several shapes."""
    draw = np.random.default_rng(0)
    names = [f"a folder/with_a_very_long_name_that_has_no_blank_anywhere_{number:03d}.jpg" for number in range(70)]
    rows = [
        {"input": name, "mask": "m.png", "lesions": 1, "lesion_pixels": 99, "confidence": 0.5, "seconds": 1.0}
        for name in names
    ]
    table = pd.DataFrame([*rows, {"input": "damaged.png"}], columns=list(COLUMNS))
    table["problem"] = np.where(table["lesions"].isna(), "cut short", "")
    shown = []
    for number, name in enumerate(names[:9]):
        picture = draw.integers(0, 256, (320 - 30 * number, 80 + 30 * number, 3), dtype=np.uint8)
        marked = np.zeros(picture.shape[:2], bool)
        marked[20:50, 20:60] = True
        shown.append(Shown(name, picture, marked))
    return write_predictions(out, ["a run"], table, shown)


@pytest.fixture(scope="module", params=["report", "comparison", "predictions"])
def page(request, pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    if request.param == "report":
        return write_report(pair, folder / "report.html")
    if request.param == "predictions":
        return write_made_predictions(folder / "report.html")
    return write_comparison(compare(observe(pair)), folder)[0]


def show(browser, page, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def screenshot(browser) -> Image.Image:
    size = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


def test_the_console_is_silent_and_only_the_file_is_asked_for(browser, page):
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, page, 1280)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    screenshot(browser)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith("data:")] == [page.as_uri()]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(browser, page, width):
    show(browser, page, width)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    inner, scroll = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert (inner, scroll) == (width, width)
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.box, svg, pre')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.parametrize("page", ["report", "comparison"], indirect=True)
def test_wide_tables_scroll_inside_their_box_on_a_phone(browser, page):
    show(browser, page, 390)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('#scores > .box')].map(e => [e.clientWidth, e.scrollWidth, e.tabIndex])"
    )
    assert boxes
    assert all(client < 390 < scroll and tab == 0 for client, scroll, tab in boxes)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_paints_in_both_schemes(browser, page, width, scheme):
    show(browser, page, width, scheme)
    image = screenshot(browser)
    corner = sum(image.getpixel((2, 2))) / 3
    assert corner > 240 if scheme == "light" else corner < 40
    assert image.width == width
    assert len(image.getcolors(maxcolors=1 << 24)) > 1000


@pytest.mark.parametrize("page", ["report", "comparison"], indirect=True)
def test_pictures_and_outlines_are_painted(browser, page):
    show(browser, page, 1280)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.panel svg')].map(e => e.getBoundingClientRect())"
        ".map(r => [r.left, r.top + scrollY, r.right, r.bottom + scrollY])"
    )
    assert len(boxes) == 18
    image = screenshot(browser)
    for place, box in enumerate(boxes):
        panel = image.crop(tuple(round(edge) for edge in box))
        colours = {colour for _, colour in panel.getcolors(maxcolors=1 << 24)}
        assert len(colours) > 500
        assert ((255, 255, 255) in colours and (47, 224, 255) in colours) or place % 3 == 0


def test_it_prints_on_a4_without_cutting_anything_off(browser, page):
    show(browser, page, 1280)
    paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True, "printBackground": True}
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", paper)["data"])
    sheets = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", printed)
    assert 3 <= len(sheets) <= 25
    assert {(round(float(width)), round(float(height))) for width, height in sheets} <= {
        (595, 842),
        (594, 841),
        (595, 841),
    }
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    width = round((8.27 - 2 * 15 / 25.4) * 96)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('svg, pre, .skip')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert outside == []


def test_everything_is_reached_by_the_keyboard(browser, page):
    show(browser, page, 1280)
    reached = set()
    for _ in range(60):
        browser.switch_to.active_element.send_keys("\ue004")  # the tabulator
        about = browser.execute_script(
            "const e = document.activeElement; return [e.tagName, e.getAttribute('aria-label') || e.textContent.trim(),"
            " getComputedStyle(e).outlineStyle]"
        )
        if about[0] == "BODY":
            break
        reached.add((about[0], about[1]))
        assert about[2] != "none" or about[0] == "PRE"
    wanted = browser.execute_script(
        "return [...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
        ".filter(e => !e.closest('details:not([open]) > :not(summary)'))"
        ".map(e => [e.tagName, e.getAttribute('aria-label') || e.textContent.trim()])"
    )
    assert {tuple(each) for each in wanted} <= reached


@pytest.mark.parametrize("page", ["comparison"], indirect=True)
def test_its_tables_are_saved_from_inside_the_file(browser, page, tmp_path):
    show(browser, page, 1280)
    links = browser.find_elements("css selector", "a[download]")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for link in links:
        link.send_keys("\ue007")  # as one does with the keyboard
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("*.csv"))) < len(links) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(links) == 6
    saved = {path.name: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    assert len(saved) == 6
    assert list(saved["verdicts.csv"]["arm"])[:1] == ["fedgs"]
    assert browser.current_url == page.as_uri()
