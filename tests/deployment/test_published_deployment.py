"""The handler and the Space of published checkpoints, in a process that has neither this package nor a network.

What is published lies on a Hub on this machine; the process gets a clone of the checkpoint and of the Space.
"""

import base64
import importlib.util
import io
import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from huggingface_hub import SpaceCard
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import pipeline

from reasonseg.conversion.publish import publish
from reasonseg.conversion.verify import verify_repository
from tests.support.hub_server import HubServer, allow_only_this_machine
from tests.support.recorded_attention import converted_repo
from tests.test_published_code import IMAGES, PHRASES, environment_without_the_package, run_without_the_package


pytestmark = pytest.mark.slow

SYSTEMS = ("gsva", "ivm", "vip_llava", "difflmm", "attend_and_segment")
QUESTION, REGION = "Where is it?", {"shape": "rectangle", "box_xyxy": [4, 4, 40, 40], "color": "red"}

# As much of gradio as the page uses: it notes what is wired to the button, and does nothing else.
GRADIO = """
WIRED = []

class Error(Exception):
    pass

def skip():
    return None

class Component:
    def __init__(self, *args, **kwargs):
        self.name = type(self).__name__

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def click(self, function, inputs, outputs):
        WIRED.append((function, [one.name for one in inputs], [one.name for one in outputs]))

for name in ("Blocks", "Markdown", "Row", "Column", "Image", "Textbox", "Slider", "Button", "AnnotatedImage"):
    globals()[name] = type(name, (Component,), {})
"""

RUN = """
import importlib.util, json, types
from PIL import Image

arguments = json.loads(sys.argv[1])
requests = json.load(open("requests.json"))
image, answers, pages = Image.open(arguments["image"]), {}, {}

def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

sys.modules["pycocotools"] = None  # an endpoint may lack it
for system in arguments["systems"]:
    folder = f"{arguments['clones']}/{system}"
    handler = load(f"{folder}/handler.py", f"handler_{system}").EndpointHandler(folder)
    module = type(handler.pipe.processor).__module__
    assert module.startswith("transformers_modules."), module
    answers[system] = []
    for request in requests[system]:
        try:
            answers[system].append(handler(request))
        except ValueError as error:
            answers[system].append({"error": str(error)})
json.dump(answers, open("answers.json", "w"))
del handler, sys.modules["pycocotools"]

gradio = types.ModuleType("gradio")
exec(arguments["gradio"], vars(gradio))
sys.modules["gradio"] = gradio

def plain(value):
    if isinstance(value, Image.Image):
        return list(value.size)
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, list):
        return [[int(mask.sum()), list(mask.shape), label] for mask, label in value]
    return value

phrases = "the dog\\na red cup"
entered = {
    "gsva": [(image, "Where is it?", ""), (image, "", phrases), (image, "a", "b"), (None, "a", "")],
    "ivm": [(image, "the dog", 0.3)],
    "vip_llava": [(image, "What is it?")],
    "difflmm": [(image, "What is it?")],
    "attend_and_segment": [(image, "What is it?", ""), (image, "", phrases), (image, "a [sEg] </s>", "")],
}
for system in arguments["systems"]:
    load(f"{arguments['clones']}/{system}-page/app.py", f"app_{system}").MAX_NEW_TOKENS = 12
    (function, inputs, outputs) = gradio.WIRED.pop()
    shown = []
    for values in entered[system]:
        assert len(values) == len(inputs)
        try:
            found = function(*values)
            shown.append([plain(one) for one in (found if isinstance(found, types.GeneratorType) else [found])])
        except gradio.Error as error:
            shown.append(str(error))
    pages[system] = {"inputs": inputs, "outputs": outputs, "shown": shown}
json.dump(pages, open("pages.json", "w"))
"""


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def repos(gsva_repo, ivm_repo, vip_llava_repo, difflmm_repo):
    repos = {"gsva": gsva_repo, "ivm": ivm_repo, "vip_llava": vip_llava_repo, "difflmm": difflmm_repo}
    return {**repos, "attend_and_segment": converted_repo()}


@pytest.fixture(scope="module")
def hub(repos):
    """All of them published with handler and Space."""
    with HubServer() as server, pytest.MonkeyPatch.context() as patched:
        allow_only_this_machine(patched)
        for name, repo in repos.items():
            publish(
                repo,
                f"org/{name}",
                private=True,
                handler=True,
                space=f"org/{name}-page",
                endpoint=server.endpoint,
                verify=lambda folder: None,
            )
        yield server


@pytest.fixture(scope="module")
def clones(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clones")
    for name in SYSTEMS:
        hub.download(f"org/{name}", folder / name)
        hub.download(f"spaces/org/{name}-page", folder / f"{name}-page")
    return folder


def requests(image):
    """What is sent to each system."""
    sent, text = {"image": image}, {"text": QUESTION}
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    wrong = [
        {"inputs": text},
        {"inputs": {**sent, **text, "phrases": ["x"]}},
        {"inputs": {**sent, "phrases": ["x"] * 101}},
        {"inputs": {**sent, "text": "<image> [SEG]"}},
        {"inputs": {"image": "https://example.org/a.png", **text}},
        {"inputs": {"image": "data:image/png;base64,bm8gaW1hZ2U=", **text}},
        {"inputs": {"image": base64.b64encode(large.getvalue()).decode(), **text}},
        {"inputs": {**sent, **text}, "parameters": {"custom_generate": "some/repo"}},
        {"inputs": {**sent, **text}, "parameters": {"max_new_tokens": 5000}},
        {"inputs": {**sent, **text, "visual_prompts": [REGION]}},
        ["no object"],
    ]
    return {
        "gsva": [
            {"inputs": {"image": f"data:image/png;base64,{image}", "phrases": PHRASES[0]}},
            {"inputs": {**sent, "phrases": PHRASES[0]}, "parameters": {"mask_format": "png", "reject_threshold": 0}},
            {"inputs": {**sent, **text}, "parameters": {"max_new_tokens": 4}},
            *wrong,
        ],
        "ivm": [
            {"inputs": {**sent, "phrases": PHRASES[0]}, "parameters": {"masking": {"threshold": 0.3}}},
            {"inputs": {**sent, **text}, "parameters": {"max_new_tokens": 4}},
        ],
        "vip_llava": [
            {"inputs": {**sent, "text": "What is it?"}, "parameters": {"max_new_tokens": 4}},
            {
                "inputs": {**sent, "text": "What is <bbox0>?", "visual_prompts": [REGION]},
                "parameters": {"max_new_tokens": 4},
            },
            {"inputs": {**sent, "text": "a", "visual_prompts": [{"shape": "mask", "mask": "/etc/passwd"}]}},
            {"inputs": {**sent, "phrases": ["a cup"]}},
        ],
        "difflmm": [
            {"inputs": {**sent, "text": "What is it?"}, "parameters": {"max_new_tokens": 3}},
            {"inputs": {**sent, "text": "What is it?", "visual_prompts": [REGION]}},
        ],
        "attend_and_segment": [
            {"inputs": {**sent, "text": "What is it?"}, "parameters": {"max_new_tokens": 8}},
            {"inputs": {**sent, "phrases": PHRASES[0]}},
        ],
    }


@pytest.fixture(scope="module")
def child(hub, clones, tmp_path_factory):
    """The folder in which a process without this package has called the handlers, and clicked in the Spaces."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "requests.json").write_text(json.dumps(requests(encoded(IMAGES[0]))), encoding="utf-8")
    run_without_the_package(
        RUN,
        folder,
        hub=hub,
        clones=str(clones),
        systems=SYSTEMS,
        image=str(IMAGES[0]),
        gradio=GRADIO,
    )
    return folder


@pytest.fixture(scope="module")
def answers(child):
    return json.loads((child / "answers.json").read_text(encoding="utf-8"))


def read_png(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_what_is_published_verifies(clones):
    for name in SYSTEMS:
        assert (clones / name / "handler.py").is_file()
    assert verify_repository(clones / "vip_llava").problems == []


def test_the_handler_draws_what_the_pipeline_draws(answers, repos):
    pipe = pipeline("reasoning-segmentation", model=str(repos["gsva"]))
    image = Image.open(IMAGES[0])
    named, shown, written = answers["gsva"][:3]
    expected = json.loads(json.dumps(pipe(image, phrases=PHRASES[0], mask_format="rle")))
    assert named == {**expected, "image_size": [image.height, image.width]}
    forced = pipe(image, phrases=PHRASES[0], reject_threshold=0)
    assert [segment["rejected"] for segment in shown["segments"]] == [False, False]
    for segment, found in zip(shown["segments"], forced["segments"], strict=True):
        assert np.array_equal(read_png(segment["mask"]), np.asarray(found["mask"]))
    expected = pipe(image, text=QUESTION, max_new_tokens=4, mask_format="rle")
    assert written == {**json.loads(json.dumps(expected)), "image_size": [image.height, image.width]}


def test_run_lengths_are_those_of_coco():
    source = importlib.util.find_spec("reasonseg.deployment.handler")
    handler = importlib.util.module_from_spec(source)
    source.loader.exec_module(handler)
    random = np.random.default_rng(0)
    masks = [
        random.random((height, width)) < share
        for height, width in ((1, 1), (7, 5), (300, 211))
        for share in (0.0, 0.01, 0.5, 1.0)
    ]
    masks.append(np.zeros((2000, 1000), dtype=bool))
    masks[-1][3:5] = True
    for mask in masks:
        expected = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert handler.to_rle(mask) == {"size": expected["size"], "counts": expected["counts"].decode()}


def test_the_handler_hides_what_an_instruction_does_not_need(answers):
    image = Image.open(IMAGES[0])
    answer, refused = answers["ivm"]
    assert [segment["label"] for segment in answer["segments"]] == PHRASES[0]
    for segment in answer["segments"]:
        assert read_png(segment["masked_image"]).shape == (image.height, image.width, 3)
        assert segment["mask"]["size"] == [image.height, image.width]
    assert "unknown fields max_new_tokens. Known are mask_format, mask_threshold, masking" in refused["error"]


def test_the_handler_answers_in_text(answers, repos):
    plain, prompted, path, phrases = answers["vip_llava"]
    ask = pipeline("image-text-to-text", model=str(repos["vip_llava"]))
    content = [{"type": "image", "image": Image.open(IMAGES[0])}, {"type": "text", "text": "What is it?"}]
    (expected,) = ask(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert (plain["generated_text"], plain["segments"]) == (expected["generated_text"], [])
    content[1]["text"] = "What is <bbox0>?"
    options = {"max_new_tokens": 4, "return_full_text": False, "processor_kwargs": {"visual_prompts": [REGION]}}
    (expected,) = ask(text=[{"role": "user", "content": content}], **options)
    assert prompted["generated_text"] == expected["generated_text"]
    assert "unknown fields mask" in path["error"]
    assert "draws no masks" in phrases["error"]


def test_the_handler_runs_the_other_models(answers, child, repos):
    written, refused = answers["difflmm"]
    ask = pipeline("image-text-to-text", model=str(repos["difflmm"]))
    content = [{"type": "image", "image": Image.open(IMAGES[0])}, {"type": "text", "text": "What is it?"}]
    (expected,) = ask(text=[{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False)
    assert written["generated_text"] == expected["generated_text"]
    assert "takes no visual_prompts" in refused["error"]

    pipe, image = pipeline("reasoning-segmentation", model=str(repos["attend_and_segment"])), Image.open(IMAGES[0])
    asked = ({"text": "What is it?", "max_new_tokens": 8}, {"phrases": PHRASES[0]})
    for found, question in zip(answers["attend_and_segment"], asked, strict=True):
        expected = json.loads(json.dumps(pipe(image, **question, mask_format="rle")))
        assert found == {**expected, "image_size": [image.height, image.width]}
    pages = json.loads((child / "pages.json").read_text(encoding="utf-8"))
    assert isinstance(pages["difflmm"]["shown"][0][0], str)
    _, named, refused = pages["attend_and_segment"]["shown"]
    assert [label for _, _, label in named[-1][0][1]] == PHRASES[0]
    assert "holds </s>, a token with which prompts are written" in refused


@pytest.mark.parametrize(
    ("index", "message"),
    list(
        enumerate(
            [
                "inputs.image is of type NoneType",
                "either text, a question, or phrases",
                "101 phrases",
                "a token with which prompts are written",
                "is a URL, and none is fetched",
                "cannot be opened as an image",
                "81000000 pixels, more than the 67108864 allowed",
                "unknown fields custom_generate",
                "max_new_tokens is 5000. Give a whole number from 1 to 1024",
                "takes no visual_prompts",
                "The request is of type list",
            ]
        )
    ),
)
def test_a_wrong_request_is_refused_in_a_sentence(answers, index, message):
    assert message in answers["gsva"][3 + index]["error"]


def test_the_space_names_the_commit_and_what_it_needs(hub, clones):
    for name in SYSTEMS:
        page, revision = clones / f"{name}-page", hub.repos[f"org/{name}"].branches["main"][1]
        app = (page / "app.py").read_text(encoding="utf-8")
        assert f'REPO = "org/{name}"\nREVISION = "{revision}"\n' in app
        card = SpaceCard((page / "README.md").read_text(encoding="utf-8"))
        assert (card.data.sdk, card.data.app_file, card.data.models) == ("gradio", "app.py", [f"org/{name}"])
        assert hub.repos[f"spaces/org/{name}-page"].private
        assert "HF_TOKEN" in card.text


def test_the_space_draws_while_the_answer_is_written(child, repos):
    pages = json.loads((child / "pages.json").read_text(encoding="utf-8"))
    asked, named, both, none = pages["gsva"]["shown"]
    pipe = pipeline("reasoning-segmentation", model=str(repos["gsva"]))
    image = Image.open(IMAGES[0])

    def drawn(answer):
        masks = [(segment["label"], segment["mask"]) for segment in answer["segments"]]
        return [[int((np.asarray(mask) > 0).sum()), label] for label, mask in masks if mask is not None]

    expected = pipe(image, phrases=PHRASES[0])
    ((size, masks), text) = named[-1]
    assert size == list(image.size)
    assert [[area, label] for area, _, label in masks] == drawn(expected)
    assert text.startswith(expected["generated_text"])
    assert text.count("Not in the image") == any(segment["rejected"] for segment in expected["segments"])
    expected = pipe(image, text=QUESTION, max_new_tokens=12)
    assert any(shown is None and text for shown, text in asked), "the text grows while the image stays"
    assert asked[-1][1].startswith(expected["generated_text"])
    assert len(asked[-1][0][1]) == len(drawn(expected))
    assert "one of the two" in both
    assert "no image" in none
    (masked,) = pages["ivm"]["shown"][0]
    assert masked[0] == list(image.size)
    assert pages["ivm"]["inputs"] == ["Image", "Textbox", "Slider"]
    assert isinstance(pages["vip_llava"]["shown"][0][0], str)


@pytest.mark.skipif(importlib.util.find_spec("gradio_client") is None, reason="gradio is not installed")
def test_the_space_runs_in_gradio_itself(hub, clones, tmp_path):
    from gradio_client import Client, handle_file

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = environment_without_the_package(tmp_path, hub) | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    command = [sys.executable, str(clones / "gsva-page" / "app.py")]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as page:
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    client = Client(f"http://127.0.0.1:{port}", verbose=False)
                    break
                except Exception:
                    assert page.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            drawn, text = client.predict(handle_file(IMAGES[0]), "", "the dog\na red cup", api_name="/segment")
            assert "the dog" in text
            assert {"image", "annotations"} <= drawn.keys()
            with pytest.raises(Exception, match="one of the two"):
                client.predict(handle_file(IMAGES[0]), "", "", api_name="/segment")
        finally:
            page.terminate()
