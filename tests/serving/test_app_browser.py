"""The web app in a headless Chromium: a scene is asked, masks appear, sliders move them, files are handed out."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        find_spec("gradio") is None or find_spec("selenium") is None,
        reason="The web app needs `pip install .[app]`, and its test selenium.",
    ),
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="No browser: `apt-get install chromium chromium-driver`."
    ),
]
# Where the screenshot of the README is to be written; `APP_SCREENSHOT=examples/app.png python -m pytest tests/...`
SCREENSHOT = os.environ.get("APP_SCREENSHOT")
WAIT = 60


@pytest.fixture(scope="module")
def address(tmp_path_factory, vip_llava_repo):
    """Of the installed command, with the embedded model and one that takes regions."""
    home = tmp_path_factory.mktemp("app")
    command = [sys.executable, "-m", "reasonseg", "app", "--model", "embedded", "--model", str(vip_llava_repo)]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "48"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**os.environ, "GRADIO_TEMP_DIR": str(home / "gradio"), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    said, found = [], threading.Event()

    def read():
        for line in process.stderr:
            said.append(line)
            if "http://" in line:
                found.set()
        found.set()

    threading.Thread(target=read, daemon=True).start()
    found.wait(WAIT)
    located = re.search(r"http://[\d.]+:\d+/", "".join(said))
    if not located:
        process.kill()
        pytest.fail(f"The app did not start: {''.join(said)}")
    yield located[0]
    process.terminate()
    process.wait(30)
    assert "Traceback" not in "".join(said), "".join(said)


@pytest.fixture(scope="module")
def browser(tmp_path_factory, address):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--lang=en"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *(
            "--disable-dev-shm-usage",
            "--window-size=1180,1130",
            f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
        ),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.get(address)
    yield driver
    driver.quit()


def wait_for(driver, found, seconds=WAIT):
    """What `found(driver)` returns once it is true."""
    from selenium.common.exceptions import StaleElementReferenceException, WebDriverException

    last, end = None, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if last := found(driver):
                return last
        except (StaleElementReferenceException, WebDriverException, IndexError) as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(
        f"waited in vain; last: {last!r}; page: {driver.find_element('tag name', 'body').text[:2000]}"
    )


def all_of(driver, selector):
    return driver.find_elements("css selector", selector)


def one(driver, selector):
    return wait_for(driver, lambda d: all_of(d, selector)[0])


def shown(driver) -> np.ndarray:
    """The image of the page, as pixels."""
    source = one(driver, "#view img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def changed(driver, before) -> np.ndarray:
    return wait_for(
        driver, lambda d: (image := shown(d)) is not None and not np.array_equal(image, before) and [image]
    )[0]


def colored(image, scene) -> int:
    """Pixels that a mask covers."""
    return int((np.abs(image.astype(int) - scene).max(axis=-1) > 12).sum())


def type_into(driver, selector, text):
    box = one(driver, f"{selector} textarea, {selector} input")
    box.clear()
    box.send_keys(text)


def slide(driver, selector, value):
    """Moves a slider as a person does who types its number."""
    number = one(driver, f"{selector} input[type=number]")
    number.send_keys("\ue009a\ue000", str(value), "\ue004")


def answered(driver, count):
    """The HTML of the last answer, once there are so many and it is complete."""

    def found(d):
        answers = all_of(d, "#chat .answer")
        if len(answers) == count and answers[-1].get_attribute("data-complete") == "true":
            return answers[-1]
        return None

    return wait_for(driver, found)


def test_a_scene_is_asked_and_its_masks_follow_the_sliders(browser):
    one(browser, "#examples button img, #examples .thumbnail-item").click()
    scene = wait_for(browser, lambda d: [shown(d)])[0]
    question = wait_for(browser, lambda d: [e for e in all_of(d, "#suggestions label") if e.text])[1]
    question.click()
    wait_for(browser, lambda d: one(d, "#question textarea, #question input").get_attribute("value"))
    one(browser, "#ask").click()
    answer = answered(browser, 1)
    marks = wait_for(browser, lambda d: all_of(d, "#chat mark[data-segment]"))
    assert "[SEG]" in answer.text
    whole = changed(browser, scene)
    area = colored(whole, scene)
    assert area > 300

    if SCREENSHOT:
        browser.execute_script("window.scrollTo(0, 0)")
        time.sleep(0.5)  # what moves has come to rest
        taken = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        taken.quantize(128, dither=Image.Dither.NONE).save(SCREENSHOT, optimize=True)

    slide(browser, "#threshold", 0.97)  # on the way there it is 0, where everything is masked
    wait_for(browser, lambda d: 0 < colored(shown(d), scene) < area)
    slide(browser, "#threshold", 0.5)
    wait_for(browser, lambda d: np.array_equal(shown(d), whole))

    slide(browser, "#rejection", 1)  # nothing is so sure to be there
    wait_for(browser, lambda d: not all_of(d, "#chat mark[data-segment]"))
    assert "Not in the image: " in one(browser, "#chat .answer").text
    assert not one(browser, "#own input").is_selected()
    one(browser, "#own input").click()
    wait_for(browser, lambda d: np.array_equal(shown(d), whole))

    one(browser, "#download").click()
    links = wait_for(browser, lambda d: all_of(d, "#files a[href]"))
    names = one(browser, "#files").text
    assert "overlay" in names
    assert "segments" in names
    assert "mask_" in names
    fetched = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "fetch([...document.querySelectorAll('#files a')].map(a => a.href).find(h => h.endsWith('segments.json')))"
        ".then(r => r.json()).then(j => done(JSON.stringify(j)), e => done(String(e)));"
    )
    assert len(json.loads(fetched)["annotations"]) == len(marks) == len(links) - 2


def test_one_phrase_alone_and_phrases_one_per_line(browser):
    scene = shown(browser)
    tab = next(button for button in all_of(browser, "button[role=tab]") if button.text == "Phrases")
    tab.click()
    type_into(browser, "#phrases", "the yellow cup\nan elephant\nthe spoon")
    one(browser, "#segment").click()
    answer = answered(browser, 2)
    assert "Not in the image: " in answer.text
    assert "an elephant" in answer.text
    whole = changed(browser, scene)
    one(browser, '#chat mark[data-turn="1"]').click()
    alone = changed(browser, whole)
    one(browser, "#chat mark.alone").click()
    wait_for(browser, lambda d: np.array_equal(shown(d), whole))
    assert not np.array_equal(alone, whole)
    one(browser, "#undo").click()
    wait_for(browser, lambda d: len(all_of(d, "#chat .answer")) == 1)


def test_a_mistake_is_told_in_a_sentence(browser):
    next(button for button in all_of(browser, "button[role=tab]") if button.text == "Ask").click()
    type_into(browser, "#question", "Where is the <image>?")
    one(browser, "#ask").click()
    toast = wait_for(browser, lambda d: [e for e in all_of(d, ".toast-body") if "token" in e.text])[0]
    assert "The question holds <image>, a token with which prompts are written. Leave it out." in toast.text
    assert "Traceback" not in toast.text
    assert len(all_of(browser, "#chat .answer")) == 1


def test_a_region_is_drawn_for_a_model_that_takes_it(browser):
    from selenium.webdriver.common.action_chains import ActionChains

    assert not any(e.is_displayed() for e in all_of(browser, "#tool"))
    one(browser, "#model input").click()
    wait_for(browser, lambda d: [e for e in all_of(d, "[role=option]") if "vip" in e.text])[0].click()
    wait_for(browser, lambda d: [e for e in all_of(d, "#tool") if e.is_displayed()])
    image = wait_for(browser, lambda d: all_of(d, '#view img[data-tool="box"]'))[0]
    scene = shown(browser)
    ActionChains(browser).move_to_element_with_offset(image, -60, -50).click_and_hold().move_by_offset(
        90, 60
    ).release().perform()
    drawn = changed(browser, scene)
    rows, columns = np.nonzero(np.abs(drawn.astype(int) - scene).max(axis=-1) > 12)
    scale = scene.shape[1] / image.size["width"]
    assert np.ptp(columns) / scale == pytest.approx(90, abs=8)
    assert np.ptp(rows) / scale == pytest.approx(60, abs=8)
    wait_for(browser, lambda d: "within the red rectangle" in one(d, "#regions").text)
    type_into(browser, "#question", "What is <bbox0>?")
    one(browser, "#ask").click()
    answered(browser, 1)


def test_nothing_left_this_machine(browser, address):
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"] for message in asked if message["method"] == "Network.requestWillBeSent"
    }
    assert len(urls) > 10
    elsewhere = {url for url in urls if not url.startswith((address, "data:", "blob:", "chrome"))}
    assert not elsewhere
