"""Any vision-language model and any SAM become one repository."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.components import add_segmenter
from reasonseg.conversion.convert_attend_and_segment import convert_attend_and_segment
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.inventory import Inventory
from reasonseg.conversion.rules_lisa_gsva import sam_table
from reasonseg.conversion.verify import verify_repository
from reasonseg.processing.processing_attend_and_segment import AttendAndSegmentProcessor
from tests.processing.test_processing_reasoning_segmentation import (
    IMAGES,
    llava_next_processor,
    llava_processor,
    qwen_processor,
)
from tests.support import tiny
from tests.support.originals import change_json, read, weights
from tests.support.recorded_attention import LLAVA, TOWER, converted_repo, recorded_sam


def save_vlm(folder, config, processor, dtype=torch.float32):
    config.text_config.vocab_size = len(processor.tokenizer)
    config.image_token_id = processor.image_token_id
    model = tiny.randomize(AutoModelForImageTextToText.from_config(config)).to(dtype)
    model.save_pretrained(folder)  # in the Hub's spelling of the names
    processor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm") / "llava"
    return folder, save_vlm(folder, tiny.llava_config(), llava_processor())


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam") / "sam2"
    model = tiny.randomize(AutoModel.from_config(tiny.sam2_config()))
    model.save_pretrained(folder)
    return folder, model


def test_an_original_llava_and_sam():
    repo = converted_repo()
    report = verify_repository(repo, against={"checkpoint": LLAVA, "vision tower": TOWER, "SAM file": recorded_sam()})
    assert report.problems == []
    assert sum(report.compared.values()) == report.tensors == len(weights(repo))
    assert report.not_compared == {}
    found, original = weights(repo), read(LLAVA / "pytorch_model.bin")
    assert torch.equal(
        found["vlm.model.multi_modal_projector.linear_2.weight"], original["model.mm_projector.2.weight"]
    )
    sam, table = read(recorded_sam()), sam_table()
    for name in ("image_encoder.pos_embed", "mask_decoder.iou_token.weight"):
        assert torch.equal(found[table.rename(name)], sam[name].float())
    config = json.loads((repo / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["heads"], config["prompt"]) == ("attend_and_segment", "paper", "point")
    processor = AutoProcessor.from_pretrained(repo)
    assert processor.vlm_processor.image_processor.do_pad is True
    assert processor.image_token_id == config["vlm_config"]["image_token_index" if "image_token_index" in
                                                            config["vlm_config"] else "image_token_id"]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "part", "fields"),
    [
        ("vlm", "text_config", {"num_hidden_layers": 10**9}),
        ("vlm", "vision_config", {"num_attention_heads": 0}),
        ("vlm", "text_config", {"hidden_size": "many"}),
        ("sam", "vision_config", {"num_labels": 10**9}),
        ("sam", "mask_decoder_config", {"num_hidden_layers": 10**9}),
        ("sam", "mask_decoder_config", {"num_attention_heads": 0}),
        ("sam", "mask_decoder_config", {"hidden_size": None}),
    ],
)
def test_configs_that_no_model_has(llava_folder, sam2_folder, tmp_path, which, part, fields):
    folders = {"vlm": llava_folder[0], "sam": sam2_folder[0]}
    folders[which] = shutil.copytree(folders[which], tmp_path / which)
    change_json(folders[which] / "config.json", lambda config: config | {part: config[part] | fields})
    with pytest.raises(ConversionError) as caught:
        convert_attend_and_segment(folders["vlm"], sam=folders["sam"], out=tmp_path / "out")
    assert caught.value.path == str(folders[which] / "config.json")
    assert not (tmp_path / "out").exists()


def test_code_that_a_source_names_neither_runs_nor_comes_along(llava_folder, sam2_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    vlm = shutil.copytree(llava_folder[0], tmp_path / "vlm")
    (vlm / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForImageTextToText"), "evil.Evil")}

    def change(config):
        parts = {name: config[name] | auto_map for name in ("text_config", "vision_config")}
        return config | auto_map | parts

    change_json(vlm / "config.json", change)
    change_json(
        vlm / "tokenizer_config.json", lambda c: c | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    )
    convert_attend_and_segment(vlm, sam=sam2_folder[0], out=tmp_path / "out")
    assert not (tmp_path / "canary").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert "evil" not in json.dumps(config)
    assert verify_repository(tmp_path / "out").problems == []


def test_folders_of_transformers(llava_folder, sam2_folder, tmp_path):
    (vlm, vlm_model), (sam, sam_model) = llava_folder, sam2_folder
    card = tmp_path / "own.yaml"
    card.write_text("system: attend_and_segment\ntitle: My Own Composition\n", encoding="utf-8")
    report = convert_attend_and_segment(vlm, sam=sam, out=tmp_path / "repo", phrase_extractor="rules", card=str(card))
    assert "My Own Composition" in (tmp_path / "repo" / "README.md").read_text(encoding="utf-8")
    assert verify_repository(tmp_path / "repo").problems == []
    assert set(report.origins) == {"checkpoint", "SAM file"}
    model = AutoModel.from_pretrained(tmp_path / "repo").eval()
    for part, source in ((model.vlm, vlm_model), (model.segmenter, sam_model)):
        state = source.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
    processor = AutoProcessor.from_pretrained(tmp_path / "repo")
    assert processor.segmenter_image_processor.segmenter_target_size == (tiny.SAM_SIDE, tiny.SAM_SIDE)
    inputs = processor(images=IMAGES[0], text="What?", answer="A dog.", return_tensors="pt")
    assert inputs["reshaped_input_sizes"].tolist() == [[tiny.SAM_SIDE, tiny.SAM_SIDE]], "SAM 2 squashes"
    with torch.no_grad():
        result = processor.post_process_segmentation(model(**inputs), inputs)[0]
    assert [segment.label for segment in result.segments] == ["A dog"]


def test_unmerged_adapters_are_refused(tmp_path):
    """Alpha is in no checkpoint, so that merging with any would be a guess."""
    source = shutil.copytree(LLAVA, tmp_path / "llava")
    state = read(source / "pytorch_model.bin")
    module = "model.layers.0.self_attn.q_proj."
    width = state[f"{module}weight"].shape[0]
    state |= {f"{module}lora_A.weight": torch.ones(2, width), f"{module}lora_B.weight": torch.ones(width, 2)}
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="unmerged adapters of rank 2"):
        convert_attend_and_segment(source, sam=recorded_sam(), vision_tower=TOWER, out=tmp_path / "out" / "repo")
    assert not (tmp_path / "out").exists()


def test_llava_next_in_half_precision_with_sams_file(tmp_path):
    save_vlm(tmp_path / "next", tiny.llava_next_config(), llava_next_processor(), torch.bfloat16)
    report = convert_attend_and_segment(
        tmp_path / "next", sam=recorded_sam(), out=tmp_path / "repo", heads=[0, 1], pointing={"prompt": "box"}
    )
    assert report.dtype == torch.bfloat16
    model = AutoModel.from_pretrained(tmp_path / "repo", dtype="auto")
    assert (model.vlm.dtype, model.segmenter.dtype) == (torch.bfloat16, torch.float32)
    assert (model.config.heads, model.config.prompt) == ([0, 1], "box")
    assert model.config.segmenter_config.mask_decoder_config.layer_norm_eps == 1e-5


def test_sam2_as_it_is_published(sam2_folder, tmp_path):
    """The published folders are those of the model for videos, with a memory that images do not need."""
    folder = shutil.copytree(sam2_folder[0], tmp_path / "sam2")
    change_json(folder / "config.json", lambda stored: stored | {"model_type": "sam2_video", "num_maskmem": 7})
    state = load_file(folder / "model.safetensors") | {"memory_temporal_positional_encoding": torch.ones(7, 1, 1, 4)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    inventory = Inventory()
    part = add_segmenter(inventory, folder)
    assert part.config.model_type == "sam2"
    assert not hasattr(part.config, "num_maskmem")
    assert [dropped.key for dropped in inventory.dropped if "memory" in dropped.key] == [
        "memory_temporal_positional_encoding"
    ]


@pytest.mark.slow
def test_difflmm(difflmm_repo, tmp_path):
    """DiffLMM is a vision-language model of this package, with a processor and an image encoder of its own."""
    convert_attend_and_segment(difflmm_repo, sam=recorded_sam(), out=tmp_path / "repo", phrase_extractor="rules")
    assert verify_repository(tmp_path / "repo").problems == []
    model = AutoModel.from_pretrained(tmp_path / "repo", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "repo")
    assert (model.config.heads, type(processor.vlm_processor).__name__) == ("paper", "DiffLmmProcessor")
    inputs = processor(images=IMAGES[0], text="What?", answer="A dog.", return_tensors="pt")
    assert inputs["grid_sizes"].tolist() == [list(model.config.vlm_config.image_token_grid)]
    # 60 x 30 pixels on a square of 60
    assert inputs["grid_boxes"].tolist() == [[-15, 0, 45, 60]]
    with torch.no_grad():
        result = processor.post_process_segmentation(model(**inputs), inputs)[0]
    assert [segment.label for segment in result.segments] == ["A dog"]


def test_qwen_without_its_video_processor(sam2_folder, tmp_path):
    """Everything of Qwen2.5-VL but the video processor, which images do not need."""
    vlm = tmp_path / "vlm"
    source = save_vlm(vlm, tiny.qwen2_5_vl_config(), qwen_processor())
    convert_attend_and_segment(vlm, sam=sam2_folder[0], out=tmp_path / "repo", phrase_extractor="rules")
    assert verify_repository(tmp_path / "repo").problems == []
    model = AutoModel.from_pretrained(tmp_path / "repo").eval()
    assert model.config.heads == "mean"
    state = source.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.vlm.state_dict().items())

    composed = AttendAndSegmentProcessor.from_pretrained(tmp_path / "repo")
    inputs = composed(images=IMAGES[0], text="What?", answer="A dog.", return_tensors="pt")
    with torch.no_grad():
        result = composed.post_process_segmentation(model(**inputs), inputs)[0]
    assert [segment.label for segment in result.segments] == ["A dog"]


def test_the_command(llava_folder, sam2_folder, tmp_path):
    arguments = ["convert", "attend-and-segment", str(llava_folder[0]), "--sam", str(sam2_folder[0])]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "repo"), "--heads", "0,-1"])
    assert done.exit_code == 0, done.output
    assert "parameters (tensors:" in done.output
    assert json.loads((tmp_path / "repo" / "config.json").read_text(encoding="utf-8"))["heads"] == [0, -1]


def broken(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "source")
    change(tmp_path / "source")
    return tmp_path / "source"


def without_weights(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()


def change_config(**fields):
    return lambda folder: change_json(folder / "config.json", lambda stored: stored | fields)


def drop_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state[sorted(state)[0]]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


VLM_FAULTS = {
    "no weights": (without_weights, "no weights|holds no"),
    "another model": (change_config(model_type="clip"), "No image-text-to-text model|cannot be used"),
    "a missing tensor": (drop_tensor, "lack 1 parameters of the vision-language model"),
    "another size": (lambda folder: change_json(
        folder / "config.json",
        lambda stored: stored | {"text_config": stored["text_config"] | {"intermediate_size": 64}},
    ), "has the shape"),
}  # fmt: skip


@pytest.mark.parametrize("fault", VLM_FAULTS)
def test_faults_of_the_vlm(llava_folder, sam2_folder, tmp_path, fault):
    change, message = VLM_FAULTS[fault]
    source = broken(llava_folder[0], tmp_path, change)
    with pytest.raises(ConversionError, match=message):
        convert_attend_and_segment(source, sam=sam2_folder[0], out=tmp_path / "out" / "repo")
    assert not (tmp_path / "out").exists()


def test_faults_of_arguments(llava_folder, sam2_folder, tmp_path):
    vlm, sam = llava_folder[0], sam2_folder[0]
    for arguments, message in (
        ({"source": tmp_path / "nowhere"}, "no such folder"),
        ({"sam": tmp_path / "nowhere.pth"}, "no such file"),
        ({"sam": vlm}, "A segmenter of type 'llava' is not known; there are sam, sam_hq"),
        ({"sam": broken(sam, tmp_path, without_weights)}, "no weights|holds no"),
        ({"source": LLAVA}, "holds no CLIP tower"),
        ({"vision_tower": TOWER}, "holds its vision tower"),
        ({"vision_tower": tmp_path / "nowhere"}, "no such folder"),
        ({"heads": "all"}, "allowed are 'paper', 'mean'"),
        ({"pointing": {"prompt": "star"}}, "prompt is 'star'"),
        ({"template": "v7"}, "template is 'v7'"),
        ({"card": "attend-and-segment-7b"}, "no card for 'attend-and-segment-7b'"),
        ({"dtype": "int8"}, "allowed are float32"),
        ({"phrase_extractor": "nltk"}, "phrase_extractor is 'nltk'"),
        ({"out": sam}, "exists already"),
    ):
        arguments = {"source": vlm, "sam": sam, "out": tmp_path / "out" / "repo"} | arguments
        with pytest.raises(ConversionError, match=message):
            convert_attend_and_segment(arguments.pop("source"), **arguments)
        assert not (tmp_path / "out").exists(), message
