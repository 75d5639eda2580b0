"""The web app in a headless Chromium: a scene is asked, masks appear, sliders move them, files are handed out."""

import base64
import http.client
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
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli import app


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
STARTING, WAIT = 240, 60  # seconds
# Of the model that takes regions: its answers go on until they are stopped, long after WAIT.
LONGEST = 20_000


@pytest.fixture(scope="module")
def address(tmp_path_factory, vip_llava_repo, small_ivm):
    """
    Of the installed command, with the embedded model, one that takes regions and one that rates pixels; it is to be
    shared, but gradio's servers are out of reach.
    """
    home = tmp_path_factory.mktemp("app")
    talker = shutil.copytree(vip_llava_repo, home / "vip")
    settings = json.loads((talker / "generation_config.json").read_text(encoding="utf-8"))
    settings["suppress_tokens"] = [*settings["suppress_tokens"], settings["eos_token_id"]]
    (talker / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "reasonseg", "app", "--share", "--max-new-tokens", str(LONGEST)]
    for model in ("embedded", talker, small_ivm):
        command += ["--model", str(model)]
    unreachable = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    own = {"GRADIO_TEMP_DIR": str(home / "gradio"), "PYTHONPATH": str(Path(__file__).parents[2])}
    here = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # it prints nothing there, and nobody reads it
        text=True,
        cwd=home,
        env={**os.environ, **own, **unreachable, **here},
    )
    said, found = [], threading.Event()

    def read():
        for line in process.stderr:
            said.append(line)
            if "no public address" in line:  # said after the address
                found.set()
        found.set()

    threading.Thread(target=read, daemon=True).start()
    found.wait(STARTING)
    located = re.search(r"http://[\d.]+:\d+/", "".join(said))
    if not located:
        process.kill()
        process.wait()
        pytest.fail(f"The app did not start: {''.join(said)}")
    yield located[0]
    process.terminate()
    try:
        process.wait(30)
    finally:
        process.kill()  # does nothing to one that has ended
    assert "Traceback" not in "".join(said), "".join(said)


@pytest.fixture
def browser(chromium):
    """The page as the test before left it; what a failed one left writing would keep the model from the next."""
    first = chromium.window_handles[0]
    yield chromium
    for other in chromium.window_handles[1:]:
        chromium.switch_to.window(other)
        chromium.close()
    chromium.switch_to.window(first)
    if all_of(chromium, '#chat .answer[data-complete="false"]'):
        chromium.find_element("css selector", "#stop").click()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory, address):
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
            "--window-size=1180,1240",
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


def click(driver, selector, text=""):
    """Clicks the first such element with this text, once nothing lies over it."""

    def clicked(d):
        found = [element for element in all_of(d, selector) if text in element.text]
        found[0].click()
        return True

    wait_for(driver, clicked)


def told(driver, word) -> str:
    """The message with this word, which is closed then."""
    # Read once: it is gone after some seconds.
    text = wait_for(driver, lambda d: [text for e in all_of(d, ".toast-body") if word in (text := e.text)])[0]
    assert "Traceback" not in text
    click(driver, ".toast-close")
    wait_for(driver, lambda d: not all_of(d, ".toast-body"))
    return text


def said(driver, number=0) -> str:
    """The text of an answer, whether it is in view or was scrolled out of it."""
    return all_of(driver, "#chat .answer")[number].get_attribute("textContent")


def is_at_its_end(driver) -> bool:
    """Whether more was said than there is room for, by some lines, and the last of it is in view."""
    return driver.execute_script(
        "const chat = document.querySelector('#chat'), end = chat.scrollHeight - chat.clientHeight;"
        "return end > 100 && chat.scrollTop > end - 5"
    )


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
    click(browser, "#examples button img, #examples .thumbnail-item")
    scene = wait_for(browser, lambda d: [shown(d)])[0]
    question = wait_for(browser, lambda d: [e for e in all_of(d, "#suggestions label") if e.text])[1]
    question.click()
    wait_for(browser, lambda d: one(d, "#question textarea, #question input").get_attribute("value"))
    click(browser, "#ask")
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
    wait_for(browser, lambda d: "Not in the image: " in said(d))
    wait_for(browser, lambda d: not one(d, "#own input").is_selected())
    click(browser, "#own input")
    wait_for(browser, lambda d: np.array_equal(shown(d), whole))

    click(browser, "#download")
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
    click(browser, "button[role=tab]", "Phrases")
    type_into(browser, "#phrases", "the yellow cup\nan elephant\nthe spoon")
    click(browser, "#segment")
    answer = answered(browser, 2)
    assert "Not in the image: " in answer.text
    assert "an elephant" in answer.text
    whole = changed(browser, scene)
    click(browser, '#chat mark[data-turn="1"]')
    alone = changed(browser, whole)
    click(browser, "#chat mark.alone")
    wait_for(browser, lambda d: np.array_equal(shown(d), whole))
    assert not np.array_equal(alone, whole)
    click(browser, "#undo")
    wait_for(browser, lambda d: len(all_of(d, "#chat .answer")) == 1)


def test_a_mistake_is_told_in_a_sentence(browser):
    click(browser, "button[role=tab]", "Ask")
    type_into(browser, "#question", "Where is the <image>?")
    click(browser, "#ask")
    assert "holds <image>, a token with which prompts are written. Leave it out." in told(browser, "token")
    assert len(all_of(browser, "#chat .answer")) == 1


def test_a_region_is_drawn_for_a_model_that_takes_it(browser):
    from selenium.webdriver.common.action_chains import ActionChains

    assert not any(e.is_displayed() for e in all_of(browser, "#tool"))
    choose(browser, "vip")
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
    for tool, words in (("point", "at the "), ("scribble", "scribble")):
        click(browser, "#tool label", tool)
        image = wait_for(browser, lambda d, tool=tool: all_of(d, f'#view img[data-tool="{tool}"]'))[0]
        before = shown(browser)
        action = ActionChains(browser).move_to_element_with_offset(image, -90, 70).click_and_hold()
        for step in ((20, 10), (25, -15), (20, 5)) if tool == "scribble" else ():
            action = action.move_by_offset(*step)
        action.release().perform()
        changed(browser, before)
        wait_for(browser, lambda d, words=words: words in one(d, "#regions").text)
    type_into(browser, "#question", "What is <bbox0>?")
    click(browser, "#ask")
    wait_for(browser, lambda d: len(said(d)) > 12)
    assert one(browser, "#chat .question").text == "What is <bbox0>?"
    click(browser, "#stop")
    wait_for(browser, lambda d: "Stopped." in said(d))
    click(browser, "#reset")
    wait_for(browser, lambda d: not all_of(d, "#chat .answer"))


def choose(driver, model):
    click(driver, "#model input")
    click(driver, "[role=option]", model)


def ask_without_end(driver, number):
    """Asks the model that goes on writing, and returns when its answer, of that number, has begun."""
    type_into(driver, "#question", "What is this?")
    click(driver, "#ask")
    wait_for(driver, lambda d: len(said(d, number)) > 12)
    assert all_of(driver, "#chat .answer")[number].get_attribute("data-complete") == "false"


def test_an_answer_is_stopped_and_another_asked(browser):
    ask_without_end(browser, 0)
    click(browser, "#stop")
    wait_for(browser, lambda d: "Stopped." in said(d))
    stopped = said(browser).removesuffix("Stopped.")
    ask_without_end(browser, 1)
    # What was on its way when it was stopped, and no more.
    assert len(said(browser)) < len(stopped) + 200
    wait_for(browser, is_at_its_end)  # the page follows what is written,
    browser.execute_script("document.querySelector('#chat').scrollTop = 0")
    so_far = len(said(browser, 1))
    wait_for(browser, lambda d: len(said(d, 1)) > so_far + 20)
    assert not is_at_its_end(browser)  # unless somebody reads what was said before
    click(browser, "#stop")
    wait_for(browser, lambda d: "Stopped." in said(d, 1))


def test_a_page_that_is_closed_ends_its_answer_and_leaves_the_model_to_others(browser, address):
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(address)
    choose(browser, "vip")
    wait_for(browser, lambda d: [e for e in all_of(d, "#tool") if e.is_displayed()])
    click(browser, "#examples button img, #examples .thumbnail-item")
    wait_for(browser, lambda d: all_of(d, "#view img"))
    ask_without_end(browser, 0)
    browser.close()
    browser.switch_to.window(first)
    ask_without_end(browser, 2)  # would wait for the other answer's end
    click(browser, "#stop")
    wait_for(browser, lambda d: "Stopped." in said(d, 2))


def test_a_heat_map_follows_its_own_slider(browser, address):
    browser.get(address)  # a page without the regions of other tests
    choose(browser, "ivm")
    wait_for(browser, lambda d: [e for e in all_of(d, "#shown-as label") if e.is_displayed()])
    assert not any(e.is_displayed() for e in [*all_of(browser, "#rejection"), *all_of(browser, "#tool")])
    click(browser, "#examples button img, #examples .thumbnail-item")
    scene = wait_for(browser, lambda d: [shown(d)])[0]
    type_into(browser, "#question", "the yellow cup")
    click(browser, "#ask")
    answered(browser, 1)
    heat = changed(browser, scene)
    click(browser, "#shown-as label", "masked image")
    whole = changed(browser, heat)
    assert np.array_equal(whole, scene)  # all of it exceeds this threshold
    slide(browser, "#threshold", 0.61)  # between the least and the largest value of this heat-map
    wait_for(browser, lambda d: colored(shown(d), scene) > 300)
    slide(browser, "#threshold", 1.0)  # nothing exceeds it, and then the image is kept whole
    wait_for(browser, lambda d: np.array_equal(shown(d), scene))


def test_a_file_that_is_no_image_is_refused_and_another_taken(browser, address, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    Image.new("RGB", (40, 30), "green").save(tmp_path / "green.png")
    for name in ("notes.png", "green.png"):
        browser.get(address)
        one(browser, "#image input[type=file]").send_keys(str(tmp_path / name))
        if name == "notes.png":
            assert "cannot be opened as an image" in told(browser, "image")
    wait_for(browser, lambda d: shown(d).shape == (30, 40, 3))


def test_a_hundred_megabytes_are_refused(browser, address, tmp_path):
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(100 * 2**20)
    browser.get(address)
    one(browser, "#image input[type=file]").send_keys(str(large))
    assert "large.png" in told(browser, "maximum allowed size")
    # One that does not ask the page first.
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    connection.request(
        "POST",
        "/gradio_api/upload",
        head + bytes(100 * 2**20) + b"\r\n--X--\r\n",
        {"Content-Type": "multipart/form-data; boundary=X"},
    )
    response = connection.getresponse()
    assert (response.status, b"exceeded" in response.read()) == (413, True)
    connection.close()


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(address):
    port = address.rstrip("/").rpartition(":")[2]
    result = CliRunner().invoke(app, ["app", "--model", "nowhere", "--port", port])
    assert result.exit_code == 1
    assert f"--port {port} is not free" in " ".join(result.output.split())


def test_nothing_left_this_machine(browser, address):
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"] for message in asked if message["method"] == "Network.requestWillBeSent"
    }
    assert len(urls) > 10
    elsewhere = {url for url in urls if not url.startswith((address, "data:", "blob:", "chrome"))}
    assert not elsewhere
