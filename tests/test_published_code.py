"""A saved checkpoint loads and computes the same where this package does not exist."""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

from reasonseg.conversion.card import render_card
from reasonseg.conversion.compose import compose
from reasonseg.conversion.convert_attend_and_segment import convert_attend_and_segment
from reasonseg.modeling.configuration_reasoning_segmentation import ReasoningSegmentationConfig
from reasonseg.modeling.modeling_reasoning_segmentation import ComposedForReasoningSegmentation
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.processing_attend_and_segment import AttendAndSegmentProcessor
from reasonseg.processing.processing_reasoning_segmentation import ReasoningSegmentationProcessor
from tests.support import recorded_sa2va
from tests.support.forked_python import fork_server
from tests.support.parity_data import PARITY
from tests.support.parts import write_llava_next, write_sam2
from tests.support.recorded_attention import converted_repo, recorded_sam


IMAGES = [PARITY / "lisa" / "images" / name for name in ("img0.png", "img1.png")]
PHRASES = [["the dog", "a red cup"], ["the tree"]]
TASK = "reasoning-segmentation"
SYSTEMS = (
    "lisa",
    pytest.param("gsva", marks=pytest.mark.slow),  # these four take longest
    "sa2va",
    "ivm",
    pytest.param("reasoning_segmentation", marks=pytest.mark.slow),
    pytest.param("attend_and_segment", marks=pytest.mark.slow),
    pytest.param("attend_and_segment_with_difflmm", marks=pytest.mark.slow),
    "coordinates",
)
# What a model that writes coordinates would write of these phrases.
WRITTEN = [
    '[{"bbox_2d": [90, 100, 600, 700], "label": "the dog"}, {"bbox_2d": [400, 50, 900, 800], "label": "a red cup"}]',
    '[{"bbox_2d": [10, 20, 990, 970], "label": "the tree"}]',
]

# Runs before everything else in the child: this package cannot be imported, and nothing can be reached.
BLOCK = """
import builtins, importlib.abc, os, socket, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("reasonseg", "modeling", "processing"):
            raise ImportError(f"{name} is blocked")

def refuse(*args, **kwargs):
    raise OSError("the network is blocked")

def no_question(*args, **kwargs):
    raise AssertionError("a question was asked")

sys.meta_path.insert(0, Blocked())
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
builtins.input = no_question
try:
    import reasonseg
except ImportError:
    pass
else:
    raise SystemExit("reasonseg could be imported")

# In a fork transformers has been imported already, with the environment of another folder.
import transformers
transformers.dynamic_module_utils.HF_MODULES_CACHE = os.path.join(os.environ["HF_HOME"], "modules")
"""

LOAD_AND_RUN = """
import json
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

arguments = json.loads(sys.argv[1])
repo, trust = arguments["repo"], {"trust_remote_code": True}
images = [Image.open(path) for path in arguments["images"]]

config = AutoConfig.from_pretrained(repo, **trust)
model = AutoModel.from_pretrained(repo, **trust)
processor = AutoProcessor.from_pretrained(repo, **trust)
for thing in (config, model, processor):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing).__module__
    assert sys.modules[type(thing).__module__].__file__.startswith(os.environ["HF_HOME"])
inputs = processor(images=images, return_tensors="pt", **arguments["asked"])
with torch.inference_mode():
    output = model(**inputs)
tensors = {f"mask_{row}": masks for row, masks in enumerate(output.pred_masks)}
tensors["input_ids"] = inputs["input_ids"]
if output.logits is not None:
    tensors["logits"] = output.logits
save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, "forward.safetensors")

named = pipeline("reasoning-segmentation", model=repo, **trust)
unnamed = pipeline(model=repo, **trust)
assert named.task == unnamed.task == "reasoning-segmentation", (named.task, unnamed.task)
answers = {
    "single": named(images[0], phrases=arguments["phrases"][0], mask_format="rle"),
    "unnamed": unnamed(images[0], phrases=arguments["phrases"][0], mask_format="rle"),
    "batch": named(images, phrases=arguments["phrases"], batch_size=2, mask_format="rle"),
    "written": named(images[0], text="Where is it?", max_new_tokens=4, mask_format="rle"),
}
json.dump(answers, open("answers.json", "w"))

# Somebody saves what was loaded: the code must travel on.
model.save_pretrained("again")
processor.save_pretrained("again")
again = pipeline(model="again", **trust)
with torch.inference_mode():
    assert all(map(torch.equal, again.model(**inputs).pred_masks, output.pred_masks))
again(images[0], phrases=arguments["phrases"][0])
"""

REFUSED_WITHOUT_TRUST = """
import json
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

repo = json.loads(sys.argv[1])["repo"]
for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, AutoProcessor.from_pretrained):
    try:
        load(repo, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise SystemExit(f"{load} ran code nobody asked for")
assert not any(name.startswith("transformers_modules.") for name in sys.modules)
"""


# The same, but a Hub on this machine answers.
ALLOW_THIS_MACHINE = """
import socket
_real = {name: getattr(socket, name) for name in ("create_connection", "getaddrinfo")}
_real["connect"] = socket.socket.connect
"""
ONLY_THIS_MACHINE = """
def connect(self, address):
    return (_real["connect"] if address[0] == "127.0.0.1" else refuse)(self, address)

def create_connection(address, *args, **kwargs):
    return (_real["create_connection"] if address[0] == "127.0.0.1" else refuse)(address, *args, **kwargs)

def getaddrinfo(host, *args, **kwargs):
    return (_real["getaddrinfo"] if host == "127.0.0.1" else refuse)(host, *args, **kwargs)

socket.socket.connect, socket.create_connection, socket.getaddrinfo = connect, create_connection, getaddrinfo
"""


@functools.cache
def bare_environment() -> dict[str, str]:
    """This process's environment without what leads Python or the Hub's client anywhere, and with an empty HF_HOME."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "COV"))}
    empty = tempfile.mkdtemp(prefix="hf-home-")
    atexit.register(shutil.rmtree, empty, ignore_errors=True)
    return {**kept, "HF_HOME": empty, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def environment_without_the_package(folder: Path, hub=None) -> dict[str, str]:
    """The environment of a process that finds this package nowhere, and no Hub but the given one."""
    env = {**bare_environment(), "HF_HOME": str(folder / "hf")}
    return env if hub is None else env | hub.environment


def run_without_the_package(code: str, folder: Path, from_nothing: bool = False, hub=None, **arguments) -> None:
    """Run `code` in a process of its own in an empty folder, where this package is blocked and the network is off.

    Args:
        code: what runs there; it finds `arguments` as JSON in `sys.argv[1]`.
        folder: the folder, where copies of a repository's code are kept, too.
        from_nothing: start a new Python instead of forking one that has imported transformers.
        hub: a Hub on this machine that it may ask; its address is read by imports, so that a new Python is started.
    """
    script = folder / "child.py"
    block = BLOCK if hub is None else ALLOW_THIS_MACHINE + BLOCK + ONLY_THIS_MACHINE
    script.write_text(block + code, encoding="utf-8")
    env = environment_without_the_package(folder, hub)
    command = [str(script), json.dumps(arguments)]
    if from_nothing or hub is not None:
        run = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
    else:
        run = fork_server(env=bare_environment()).run(*command, cwd=folder, env=env)
    assert run.returncode == 0, run.stdout + run.stderr


def save_composed(lisa_repo: Path, out: Path) -> None:
    """Save the base class with the recorded weights: another VLM processor nested, another set of published files."""
    source = AutoModel.from_pretrained(lisa_repo)
    config = ReasoningSegmentationConfig(
        vlm_config=source.config.vlm_config,
        segmenter_config=source.config.segmenter_config,
        seg_token_id=source.config.seg_token_id,
    )
    model = ComposedForReasoningSegmentation(config)
    model.load_state_dict(source.state_dict())
    model.save_pretrained(out, save_original_format=False)
    llava_processor(lisa_repo).save_pretrained(out)


def llava_processor(lisa_repo: Path) -> ReasoningSegmentationProcessor:
    """A stock LlavaProcessor inside this package's processor."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    source = AutoProcessor.from_pretrained(lisa_repo)
    vlm_processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
        tokenizer=source.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=source.chat_template,
    )
    return ReasoningSegmentationProcessor(vlm_processor, SegmenterImageProcessor())


def compose_coordinates_repo(folder: Path) -> Path:
    """Of another family than LLaVA v1 and a SAM 2; its random model ends no answer by itself."""
    parts = {"vlm": write_llava_next(folder / "next"), "segmenter": write_sam2(folder / "sam2")}
    out = compose({"system": "coordinates", **parts, "coordinate_format": "qwen3_vl"}, folder / "repo").out
    generation = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    (out / "generation_config.json").write_text(json.dumps(generation | {"max_new_tokens": 4}), encoding="utf-8")
    return out


def asked_of(repo: Path) -> dict:
    """What is asked in one pass: phrases, or a question with the coordinates that would be written."""
    config = json.loads((repo / "config.json").read_text(encoding="utf-8"))
    is_written = config["model_type"] == "coordinates"
    return {"text": ["Where is it?"] * 2, "answer": WRITTEN} if is_written else {"phrases": PHRASES}


@pytest.fixture(scope="module", params=SYSTEMS)
def repo(request, lisa_repo, gsva_repo, ivm_repo, difflmm_repo, tmp_path_factory) -> Path:
    if request.param == "reasoning_segmentation":
        out = tmp_path_factory.mktemp("composed")
        save_composed(lisa_repo, out)
        return out
    if request.param == "attend_and_segment":
        return converted_repo()
    if request.param == "sa2va":
        return recorded_sa2va.converted_repo("qwen3_vl")
    if request.param == "coordinates":
        return compose_coordinates_repo(tmp_path_factory.mktemp("coordinates"))
    if request.param == "attend_and_segment_with_difflmm":
        out = tmp_path_factory.mktemp("with_difflmm") / "repo"
        convert_attend_and_segment(difflmm_repo, sam=recorded_sam(), out=out, phrase_extractor="rules")
        return out
    return {"lisa": lisa_repo, "gsva": gsva_repo, "ivm": ivm_repo}[request.param]


@pytest.fixture(scope="module")
def child(repo, tmp_path_factory) -> Path:
    """The folder in which a process without this package has loaded and run `repo`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run_without_the_package(
        LOAD_AND_RUN,
        folder,
        repo=str(repo),
        images=[str(path) for path in IMAGES],
        phrases=PHRASES,
        asked=asked_of(repo),
    )
    return folder


@pytest.fixture(scope="module")
def ours(repo):
    """The pipeline of `repo` in this process, where the package is imported: without `trust_remote_code`."""
    return pipeline(TASK, model=str(repo))


def test_masks_and_logits_are_the_same_bits(repo, ours, child):
    model, processor = ours.model, AutoProcessor.from_pretrained(repo)
    assert type(model).__module__.startswith("reasonseg."), "with the package imported its own classes win"
    inputs = processor(images=[Image.open(path) for path in IMAGES], return_tensors="pt", **asked_of(repo))
    with torch.inference_mode():
        output = model(**inputs)
    theirs = load_file(child / "forward.safetensors")
    assert torch.equal(theirs["input_ids"], inputs["input_ids"])
    if output.logits is not None:  # IVM computes none
        assert torch.equal(theirs["logits"], output.logits)
    assert sum(len(masks) for masks in output.pred_masks) == sum(len(row) for row in PHRASES)
    for row, masks in enumerate(output.pred_masks):
        assert torch.equal(theirs[f"mask_{row}"], masks)


def test_the_pipeline_gives_the_same_answers(repo, ours, child):
    theirs = json.loads((child / "answers.json").read_text(encoding="utf-8"))
    images = [Image.open(path) for path in IMAGES]
    expected = {
        "single": ours(images[0], phrases=PHRASES[0], mask_format="rle"),
        "batch": ours(images, phrases=PHRASES, batch_size=2, mask_format="rle"),
        "written": ours(images[0], text="Where is it?", max_new_tokens=4, mask_format="rle"),
    }
    expected["unnamed"] = expected["single"]
    assert json.loads(json.dumps(expected)) == theirs
    found = theirs["single"]["segments"] + theirs["batch"][1]["segments"]
    if "text" not in asked_of(repo):  # a random model finds coordinates of nothing
        assert any(one["mask"] for one in found)


def test_without_trust_nothing_runs_and_nothing_is_asked(repo, tmp_path):
    run_without_the_package(REFUSED_WITHOUT_TRUST, tmp_path, repo=str(repo))


def test_every_published_file_travels_unchanged_and_again(repo, child):
    root = Path(__file__).parents[1]
    originals = {file.name: file for folder in ("modeling", "processing") for file in (root / folder).glob("*.py")}
    published = list(repo.glob("*.py"))
    assert len(published) >= 10
    for file in published:
        assert file.read_bytes() == originals[file.name].read_bytes(), file.name
    vlm_type = json.loads((repo / "config.json").read_text(encoding="utf-8"))["vlm_config"]["model_type"]
    assert {file.name for file in published} == {file.name for file in (child / "again").glob("*.py")}
    # DiffLMM's code lies beside the repositories that need it only.
    assert (repo / "modeling_difflmm.py").is_file() == (vlm_type == "difflmm")
    assert not list(repo.glob("*.bin"))
    assert not [entry.name for entry in repo.iterdir() if entry.is_dir()]


def test_a_card_says_what_each_published_file_does(repo):
    rows = re.findall(r"^\| `(\w+\.py)` \| (.+\.) \|$", render_card("lisa", "unknown", repo=repo), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(file.name for file in repo.glob("*.py"))
    assert all(len(does) > 20 for _, does in rows)
    assert "| file | what it does |" not in render_card("lisa", "unknown")


LOAD_THE_PROCESSOR = """
import json
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor

arguments = json.loads(sys.argv[1])
image = Image.open(arguments["image"])
try:
    AutoProcessor.from_pretrained(arguments["repo"], trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise SystemExit("code ran that nobody asked for")
for repo in (arguments["repo"], "again"):
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    vlm_processor = processor.vlm_processor
    for thing in (processor, vlm_processor, vlm_processor.image_processor):
        assert type(thing).__module__.startswith("transformers_modules."), type(thing).__module__
    assert type(vlm_processor).__name__ == arguments["name"], type(vlm_processor)
    inputs = processor(images=image, text="What is it?", return_tensors="pt")
    save_file({name: inputs[name].clone() for name in ("input_ids", "pixel_values")}, "inputs.safetensors")
    processor.save_pretrained("again")
"""


@pytest.mark.parametrize(
    ("fixture", "name"), [("vip_llava_repo", "VipLlavaProcessor"), ("difflmm_repo", "DiffLmmProcessor")]
)
def test_the_code_of_another_processor_travels_with_it(fixture, name, request, tmp_path):
    """Attend-and-segment takes vision-language models of this package, too, whose processors need their code."""
    processor = AttendAndSegmentProcessor(
        AutoProcessor.from_pretrained(request.getfixturevalue(fixture)), phrase_extractor="rules"
    )
    processor.save_pretrained(tmp_path / "repo")
    run_without_the_package(LOAD_THE_PROCESSOR, tmp_path, repo=str(tmp_path / "repo"), image=str(IMAGES[0]), name=name)
    expected = processor(images=Image.open(IMAGES[0]), text="What is it?", return_tensors="pt")
    found = load_file(tmp_path / "inputs.safetensors")
    assert all(torch.equal(expected[key], found[key]) for key in found)


def test_code_of_other_processors_does_not_come_along(lisa_repo, tmp_path):
    stock = llava_processor(lisa_repo).vlm_processor
    AttendAndSegmentProcessor(stock, phrase_extractor="rules").save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.glob("*.py")}
    assert "processing_attend_and_segment.py" in names
    assert not names & {"processing_vip_llava.py", "processing_difflmm.py", "visual_prompts.py"}


COMPOSED = """
import json
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

arguments = json.loads(sys.argv[1])
repo, trust = arguments["repo"], {"trust_remote_code": True}
model, processor = AutoModel.from_pretrained(repo, **trust), AutoProcessor.from_pretrained(repo, **trust)
assert type(model).__name__ == "LisaForReasoningSegmentation", type(model)
assert type(processor).__name__ == "ReasoningSegmentationProcessor", type(processor)
inputs = processor(images=[Image.open(arguments["image"])], phrases=[["a dog"]], return_tensors="pt")
with torch.inference_mode():
    assert len(model(**inputs).pred_masks[0]) == 1
"""


def test_a_composed_model_brings_the_processor_of_its_parts(tmp_path):
    """LISA of another vision-language model than LLaVA v1, whose own processor is inside one of this package."""
    vlm, segmenter = write_llava_next(tmp_path / "next"), write_sam2(tmp_path / "sam2")
    repo = compose({"system": "lisa", "vlm": str(vlm), "segmenter": str(segmenter)}, tmp_path / "repo").out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_without_the_package(COMPOSED, elsewhere, repo=str(repo), image=str(IMAGES[0]))
