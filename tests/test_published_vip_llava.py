"""A converted ViP-LLaVA loads, draws and answers where this package does not exist, and in transformers' own class."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from reasonseg.processing.visual_prompts import VisualPrompt
from tests.support.recorded_vip_llava import recorded_image, tensors
from tests.test_published_code import run_without_the_package


BOX, QUESTION = (40, 30, 120, 100), "What is shown <bbox0>?"
OPTIONS = {"max_new_tokens": 8, "return_full_text": False}

LOAD_AND_RUN = """
import json
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

arguments = json.loads(sys.argv[1])
repo, image = arguments["repo"], Image.open(arguments["image"])
stock = AutoModelForImageTextToText.from_pretrained(repo).eval()
assert type(stock).__module__.startswith("transformers.models.vipllava"), type(stock).__module__
model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
for thing in (model, processor, processor.image_processor):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing).__module__
own = sys.modules[type(processor).__module__]
prompt = own.VisualPrompt("rectangle", box_xyxy=arguments["box"], color="red", anchor=112)
inputs = processor(image, arguments["question"], visual_prompts=[prompt], return_tensors="pt")
with torch.inference_mode():
    logits, theirs = model(**inputs).logits, stock(**inputs).logits
words = torch.arange(logits.shape[-1]) != model.config.image_token_id
assert torch.equal(logits[..., words], theirs[..., words])
assert (logits[..., ~words] == torch.finfo(logits.dtype).min).all()
found = {"logits": logits, "input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}
save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, "forward.safetensors")

ask = pipeline("image-text-to-text", model=repo, trust_remote_code=True)
assert type(ask.model) is type(model), type(ask.model)

def chat(question):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]

options = {"max_new_tokens": 8, "return_full_text": False}
answers = {
    "prompted": ask(text=chat(arguments["question"]), processor_kwargs={"visual_prompts": [prompt]}, **options),
    "batch": ask(text=[chat("What?"), chat("Where is the brown dog?")], batch_size=2, **options),
    "plain": ask(image, text="What is this?", **options),
    "text": ask(text="Who are you?", **options),
}
texts = {
    name: [row["generated_text"] for row in sum((r if isinstance(r, list) else [r] for r in rows), [])]
    for name, rows in answers.items()
}
json.dump(texts, open("answers.json", "w"))

# A saved pipeline is a whole checkpoint, whoever has saved it.
ask.save_pretrained("asked")
for saved in (arguments["saved"], "asked"):
    again = pipeline("image-text-to-text", model=saved, trust_remote_code=True)
    assert type(again.processor).__module__.startswith("transformers_modules."), type(again.processor)
    assert again(image, text="What is this?", **options) == answers["plain"]

processor.save_pretrained("again")
again = AutoProcessor.from_pretrained("again", trust_remote_code=True)
views = [one(image, "x", return_tensors="pt")["pixel_values"] for one in (processor, again)]
assert torch.equal(*views)

# Somebody saves what was loaded: the code must travel on.
model.save_pretrained("again")
for trust, module in ((True, "transformers_modules."), (False, "transformers.models.")):
    again = AutoModelForImageTextToText.from_pretrained("again", trust_remote_code=trust)
    assert type(again).__module__.startswith(module), type(again).__module__
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
"""

REFUSED_WITHOUT_TRUST = """
import json
from transformers import AutoProcessor

try:
    AutoProcessor.from_pretrained(json.loads(sys.argv[1])["repo"], trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise SystemExit("another processor took its place, or code ran that nobody asked for")
"""


@pytest.fixture(scope="module")
def child(vip_llava_repo, tmp_path_factory):
    """The folder in which a process without this package has loaded and run the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    recorded_image(0, blended=False).save(folder / "image.png")
    pipeline("image-text-to-text", model=str(vip_llava_repo)).save_pretrained(folder / "saved")
    run_without_the_package(
        LOAD_AND_RUN,
        folder,
        repo=str(vip_llava_repo),
        saved=str(folder / "saved"),
        image=str(folder / "image.png"),
        box=BOX,
        question=QUESTION,
    )
    return folder


@pytest.mark.slow
def test_inputs_and_logits_are_the_same_bits(vip_llava_repo, child):
    model = AutoModelForImageTextToText.from_pretrained(vip_llava_repo).eval()
    processor = AutoProcessor.from_pretrained(vip_llava_repo)  # no trust_remote_code: the package is imported
    prompt = VisualPrompt("rectangle", box_xyxy=BOX, color="red", anchor=112)
    inputs = processor(recorded_image(0, blended=False), QUESTION, visual_prompts=[prompt], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
    theirs = load_file(child / "forward.safetensors")
    assert torch.equal(theirs["input_ids"], inputs["input_ids"])
    assert torch.equal(theirs["pixel_values"], inputs["pixel_values"])
    assert torch.equal(theirs["logits"], logits)


@pytest.mark.slow
def test_the_pipeline_of_transformers(vip_llava_repo, child):
    theirs = json.loads((child / "answers.json").read_text(encoding="utf-8"))
    processor = AutoProcessor.from_pretrained(vip_llava_repo)
    recorded = tensors()["case_00.generated_ids"].tolist()[1:9]
    assert theirs["prompted"] == [processor.decode(recorded, skip_special_tokens=True)]

    ask = pipeline("image-text-to-text", model=str(vip_llava_repo))
    image = recorded_image(0, blended=False)
    alone = []
    for question in ("What?", "Where is the brown dog?"):
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        alone += ask(text=[{"role": "user", "content": content}], **OPTIONS)
    assert theirs["batch"] == [row["generated_text"] for row in alone]
    assert theirs["plain"] == [row["generated_text"] for row in ask(image, text="What is this?", **OPTIONS)]
    assert len(theirs["text"]) == 1


def test_without_trust_nothing_takes_its_place(vip_llava_repo, tmp_path):
    run_without_the_package(REFUSED_WITHOUT_TRUST, tmp_path, repo=str(vip_llava_repo))


def test_a_saved_pipeline_keeps_how_its_processor_asks(vip_llava_phi_3_repo, tmp_path):
    """Not the template of another language model, which a processor without its own config would take."""
    ask = pipeline("image-text-to-text", model=str(vip_llava_phi_3_repo))
    ask.save_pretrained(tmp_path / "saved")
    saved = AutoProcessor.from_pretrained(tmp_path / "saved")
    expected = ask.processor.to_dict()
    assert saved.to_dict() == {name: value for name, value in expected.items() if name != "auto_map"}
    assert (saved.template, saved.chat_template) == ("llava_phi_3", ask.processor.chat_template)
