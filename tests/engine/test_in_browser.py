"""The report and the local page in a real Chromium, without a window.

They need `chromium` and `chromium-driver` (Debian's names) and the package selenium; without them they skip.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gflv2.engine.analysis import analyze
from gflv2.engine.predict import predict
from gflv2.engine.view import make_app
from gflv2.engine.view.server import HOST, serve
from tests.engine.looking import FILE, NAMES, picture, small_model, write_data

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver is installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    if os.geteuid() == 0:  # Chromium's sandbox refuses to run as root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def address(model):
    server = serve(make_app(model, most_megabytes=1), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{HOST}:{server.port}/"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / FILE
    Image.fromarray(picture()).save(path)
    return path


def wait(browser, script: str, *values):
    """What the script returns, once it returns something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda d: d.execute_script(script, *values))


def text_of(browser, name: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def give(browser, path: Path) -> None:
    """Choose a file on the page."""
    browser.find_element("id", "file").send_keys(str(path))


def count_of(browser) -> int:
    return browser.execute_script("return document.querySelectorAll('#boxes g[role=button]').length")


def opened(browser, address: str) -> None:
    browser.get_log("browser")
    browser.get(address)
    wait(browser, "return document.getElementById('model').textContent")


def slide(browser, value: float) -> None:
    script = (
        "const s = document.getElementById('threshold'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(script, value)


def is_clean(browser, own: str) -> None:
    """No error was logged, no name was taken for HTML, and nothing came from elsewhere."""
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.broken") is None
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith((own, "data:")) for name in loaded), loaded


def test_boxes_follow_the_slider_and_show_their_distributions(browser, model, address, file):
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, address)
    expected = predict(model, picture())
    give(browser, file)
    wait(browser, "return document.getElementById('count').textContent")
    scores = np.sort(expected.scores.numpy())[::-1]
    for place in (len(scores) - 1, 2, 0):
        threshold = float(np.floor(scores[place] * 100) / 100)
        slide(browser, threshold)
        assert count_of(browser) == int((scores >= threshold).sum()) > 0
    # The best box: a real click in its middle, where no other box is left.
    slide(browser, 0.02)
    slide(browser, float(np.floor(scores[0] * 100) / 100))
    hit = browser.find_element("css selector", "#boxes g[data-number='0'] .hit")
    assert count_of(browser) >= 1
    ActionChains(browser).move_to_element(hit).click().perform()
    chosen = int(wait(browser, "return document.querySelector('#boxes .chosen')?.dataset.number"))
    detail = text_of(browser, "detail")
    assert expected.names[chosen] in detail and f"score {expected.scores[chosen]:.3f}" in detail
    assert "score = class × quality" in detail
    charts = browser.find_elements("css selector", "#detail .side")
    assert [chart.find_element("tag name", "h3").text.split()[0] for chart in charts] == [
        "left",
        "top",
        "right",
        "bottom",
    ]
    for side, chart in enumerate(charts):
        assert len(chart.find_elements("css selector", "rect.bar")) == expected.distributions.shape[2]
        assert len(chart.find_elements("css selector", "line.mark")) == 1
        top = expected.distributions[chosen, side].sort(descending=True).values[:4]
        assert ", ".join(f"{value:.3f}" for value in top.tolist()) in chart.text
    # Without its box, nothing is left of it.
    slide(browser, 1)
    assert count_of(browser) == 0 and "Click a box" in text_of(browser, "detail")
    is_clean(browser, address)
    assert browser.execute_script("return document.querySelectorAll('#boxes b, #detail b, #detail img').length") == 0


def test_the_mark_stands_at_the_expectation(browser, model, address, file):
    opened(browser, address)
    slide(browser, 0.02)
    give(browser, file)
    wait(browser, "return document.querySelector('#boxes g[data-number=\"0\"]')")
    click = "document.querySelector('#boxes g[data-number=\"0\"]').dispatchEvent(new MouseEvent('click'))"
    browser.execute_script(click)
    expected = predict(model, picture())
    bins = expected.distributions.shape[2]
    for side, chart in enumerate(browser.find_elements("css selector", "#detail .side")):
        x = float(chart.find_element("css selector", "line.mark").get_attribute("x1"))
        mean = float((expected.distributions[0, side] * expected.projection).sum())
        place = bins - 1 - mean if side < 2 else mean  # a left or top side lies farther left the more distant it is
        assert x == pytest.approx((place + 0.5) / bins * 380, abs=0.1)
        bars = [float(bar.get_attribute("height")) for bar in chart.find_elements("css selector", "rect.bar")]
        shares = expected.distributions[0, side].tolist()
        assert np.argmax(bars) == np.argmax(shares[::-1] if side < 2 else shares)


def test_a_dropped_picture_and_frames_over_what_they_mean(browser, model, address, file):
    opened(browser, address)
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
        const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
        return event.defaultPrevented;
    """
    import base64

    assert browser.execute_script(script, base64.b64encode(file.read_bytes()).decode())  # else the page would be left
    slide(browser, 0.02)
    wait(browser, "return document.querySelector('#boxes g[data-number=\"0\"]')")
    wait(browser, "return document.getElementById('picture').complete")
    places = """
        const frame = document.querySelector("#boxes g[data-number='0'] .hit").getBoundingClientRect();
        const image = document.getElementById("picture").getBoundingClientRect();
        return [frame.left - image.left, frame.top - image.top, frame.right - image.left, frame.bottom - image.top,
            image.width / arguments[0]];
    """
    *edges, scale = wait(browser, places, 180)
    np.testing.assert_allclose(np.array(edges) / scale, predict(model, picture()).boxes[0], atol=0.5)
    is_clean(browser, address)


def test_names_do_not_cover_each_other(browser, address, file):
    opened(browser, address)
    slide(browser, 0.02)
    give(browser, file)
    wait(browser, "return document.querySelector('#boxes .tag')")
    script = "return [...document.querySelectorAll('#boxes .tag rect')].map((r) => r.getBoundingClientRect().toJSON())"
    places = wait(browser, script)
    assert len(places) > 3
    for number, one in enumerate(places):
        for other in places[:number]:
            apart = one["left"] >= other["right"] - 0.5 or other["left"] >= one["right"] - 0.5
            assert apart or one["top"] >= other["bottom"] - 0.5 or other["top"] >= one["bottom"] - 0.5


def test_errors_are_shown_in_one_line(browser, address, tmp_path, file):
    opened(browser, address)
    wrong = tmp_path / "<i>notes</i>.png".replace("/", "_")
    wrong.write_text("no picture")
    give(browser, wrong)
    text = wait(browser, "return document.getElementById('error').textContent")
    assert text.startswith(f"{wrong.name}: ") and "not a picture" in text
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2**20 + 1))
    give(browser, large)
    wait(browser, "return document.getElementById('error').textContent.startsWith('large.png')")
    assert "at most 1 MB" in text_of(browser, "error")
    give(browser, file)  # a good one takes the error away
    wait(browser, "return document.getElementById('error').hidden")


def test_the_report(browser, tmp_path):
    data = write_data(tmp_path / "data")
    analyze(small_model(), data, output=tmp_path / "out", threshold=0.0, sides=3, progress=False)
    browser.get_log("browser")
    page = (tmp_path / "out" / "report.html").as_uri()
    browser.get(page)
    is_clean(browser, page)
    text = browser.find_element("tag name", "body").text
    assert all(name in text for name in NAMES) and FILE in text
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map((s) => s.getBoundingClientRect().width)"
    )
    assert len(sizes) == 7 + 2 + 2 * 3 and min(sizes) > 200
    wide = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0  # nothing reaches over the edge
    crops = browser.execute_script("return [...document.querySelectorAll('.sides image')].map((i) => i.href.baseVal)")
    decoded = "return createImageBitmap(await (await fetch(arguments[0])).blob()).then((b) => b.width)"
    assert len(crops) == 3 and all(browser.execute_script(decoded, crop) > 20 for crop in crops)
