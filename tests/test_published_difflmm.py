"""A converted DiffLMM loads and answers where this package does not exist, and says so where diffusers is missing."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.support.parity_data import PARITY
from tests.test_published_code import REFUSED_WITHOUT_TRUST, run_without_the_package


IMAGES = [PARITY / "difflmm" / f"image{place}.png" for place in range(2)]
QUESTIONS = ["Describe the image in detail.", "What is the brown dog doing?"]
OPTIONS = {"max_new_tokens": 6, "return_full_text": False}

LOAD_AND_RUN = """
import json
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

arguments = json.loads(sys.argv[1])
repo, trust = arguments["repo"], {"trust_remote_code": True}
images = [Image.open(path) for path in arguments["images"]]
config = AutoConfig.from_pretrained(repo, **trust)
model = AutoModelForImageTextToText.from_pretrained(repo, **trust)
processor = AutoProcessor.from_pretrained(repo, **trust)
for thing in (config, model, processor, processor.image_processor):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing).__module__
inputs = processor(images=images, text=arguments["questions"], return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs).logits
found = {"logits": logits, "input_ids": inputs["input_ids"]}
save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, "forward.safetensors")

ask = pipeline("image-text-to-text", model=repo, **trust)

def chat(image, question):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]

chats = [chat(image, question) for image, question in zip(images, arguments["questions"])]
answers = {
    "batch": [row[0]["generated_text"] for row in ask(text=chats, batch_size=2, **arguments["options"])],
    "single": [ask(text=one, **arguments["options"])[0]["generated_text"] for one in chats],
    "plain": [ask(images[0], text="What?", **arguments["options"])[0]["generated_text"]],
}
json.dump(answers, open("answers.json", "w"))

# A saved pipeline is a whole checkpoint, whoever has saved it.
ask.save_pretrained("asked")
for saved in (arguments["saved"], "asked"):
    again = pipeline("image-text-to-text", model=saved, **trust)
    assert type(again.processor).__module__.startswith("transformers_modules."), type(again.processor)
    assert [again(images[0], text="What?", **arguments["options"])[0]["generated_text"]] == answers["plain"]

# Somebody saves what was loaded: the code must travel on.
model.save_pretrained("again")
processor.save_pretrained("again")
again = AutoModel.from_pretrained("again", **trust)
assert type(again).__name__ == "DiffLmmForConditionalGeneration"
with torch.inference_mode():
    assert torch.equal(again(**inputs).logits, logits)
AutoProcessor.from_pretrained("again", **trust)
"""

WITHOUT_DIFFUSERS = """
import json
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

sys.modules["diffusers"] = None
repo, trust = json.loads(sys.argv[1])["repo"], {"trust_remote_code": True}
assert AutoConfig.from_pretrained(repo, **trust).image_token_grid == (8, 8)
AutoProcessor.from_pretrained(repo, **trust)
try:
    AutoModelForImageTextToText.from_pretrained(repo, **trust)
except ImportError as error:
    assert "pip install diffusers" in str(error), error
else:
    raise SystemExit("a model was built without diffusers")
"""


@pytest.fixture(scope="module")
def child(difflmm_repo, tmp_path_factory):
    """The folder in which a process without this package has loaded and run the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    pipeline("image-text-to-text", model=str(difflmm_repo)).save_pretrained(folder / "saved")
    arguments = {"images": [str(path) for path in IMAGES], "questions": QUESTIONS, "options": OPTIONS}
    arguments["saved"] = str(folder / "saved")
    run_without_the_package(LOAD_AND_RUN, folder, repo=str(difflmm_repo), **arguments)
    return folder


@pytest.mark.slow
def test_logits_are_the_same_bits(difflmm_repo, child):
    model, processor = (
        loader.from_pretrained(difflmm_repo) for loader in (AutoModelForImageTextToText, AutoProcessor)
    )
    assert type(model).__module__.startswith("reasonseg."), "with the package imported its own classes win"
    inputs = processor(images=[Image.open(path) for path in IMAGES], text=QUESTIONS, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
    theirs = load_file(child / "forward.safetensors")
    assert torch.equal(theirs["input_ids"], inputs["input_ids"])
    assert torch.equal(theirs["logits"], logits)


@pytest.mark.slow
def test_the_pipeline_of_transformers(difflmm_repo, child):
    theirs = json.loads((child / "answers.json").read_text(encoding="utf-8"))
    assert theirs["batch"] == theirs["single"]
    assert all(theirs["single"])
    ask = pipeline("image-text-to-text", model=str(difflmm_repo))  # no trust_remote_code: the package is imported
    assert theirs["plain"] == [ask(Image.open(IMAGES[0]), text="What?", **OPTIONS)[0]["generated_text"]]


def test_without_diffusers_the_error_says_what_to_install(difflmm_repo, tmp_path):
    run_without_the_package(WITHOUT_DIFFUSERS, tmp_path, repo=str(difflmm_repo))


def test_without_trust_nothing_runs_and_nothing_is_asked(difflmm_repo, tmp_path):
    run_without_the_package(REFUSED_WITHOUT_TRUST, tmp_path, repo=str(difflmm_repo))
