"""
DiffLMM from its parts through both stages of its training, tiny: what learns and what stays, losses that fall, a run
that was stopped, and repositories that load, verify and point.
"""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.compose import compose
from reasonseg.conversion.convert_attend_and_segment import convert_attend_and_segment
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.publish import publish
from reasonseg.conversion.verify import verify_repository
from reasonseg.data.data_files import DataFileError
from reasonseg.data.dialogues import RegionDialogues
from reasonseg.training.recipe import RecipeError, load_recipe
from reasonseg.training.regions import DialogueCollator
from reasonseg.training.run import run_recipe
from tests.support.hub_server import HubServer, allow_only_this_machine
from tests.support.parity_data import difflmm_sources
from tests.support.recorded_attention import recorded_sam


pytestmark = pytest.mark.slow


pytest.importorskip("diffusers", reason="DiffLMM needs diffusers; `pip install .[dev]` has it.")

LEARNS = ("model.multi_modal_projector.", "model.implicit_captioner.")
IMAGE_TOKENS = 64
FAST = (
    *("arguments.use_cpu=true", "arguments.dataloader_num_workers=0"),
    *("arguments.disable_tqdm=true", "arguments.logging_steps=1", "arguments.per_device_train_batch_size=2"),
    *("matmul_precision=highest", "arguments.save_strategy='no'"),
    *("arguments.lr_scheduler_type=constant", "arguments.warmup_steps=0"),
)


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[turn % 2], "value": text} for turn, text in enumerate(texts)]


ROWS = [
    {
        "id": "0001",
        "image": "a.png",
        "conversations": said("What is this?\n<image>", "A dog.", "Are you sure?", "Yes, a dog."),
    },
    {"id": "sharegpt_1", "conversations": said("Hello", "Hi there!")},
    {"id": "0002", "image": "a.png", "conversations": said("<image>\nWhat colour?", "Brown.")},
    {"id": "sharegpt_2", "conversations": said("Bye", "See you.")},
]


def recorded_parts() -> dict[str, str]:
    """The recorded parts, in the words of a recipe."""
    sources = difflmm_sources()
    return {
        "system": "difflmm",
        "language_model": str(sources["base"]),
        "diffusion": str(sources["diffusion"]),
        "vision_tower": str(sources["vision_tower"]),
        "image_size": 128,
        "dtype": "float32",
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    caption = {"id": "c", "image": "a.png", "conversations": said("Describe it.\n<image>", "a brown dog")}
    (folder / "captions.json").write_text(json.dumps([caption]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stage_1(data, tmp_path_factory):
    """Trained as it is typed, from parts."""
    out = tmp_path_factory.mktemp("stage1") / "repo"
    overrides = (
        *FAST,
        *(f"parts.{name}={value}" for name, value in recorded_parts().items()),
        f"data.path={data / 'captions.json'}",
        f"data.options.images={data}",
        "arguments.max_steps=4",
        "arguments.learning_rate=0.01",
    )
    options = [part for override in overrides for part in ("--set", override)]
    result = CliRunner().invoke(app, ["train", "difflmm_pretrain", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return out


@functools.cache
def weights(repo) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(repo, dtype="float32").state_dict()


def loss_of(repo, data, rows: str, **collator) -> float:
    """Of all rows of a file, with the noise of the evaluation."""
    model, processor = (kind.from_pretrained(repo) for kind in (AutoModelForImageTextToText, AutoProcessor))
    dialogues = RegionDialogues(data / rows)
    batch = DialogueCollator(processor, **collator)([dialogues[index] for index in range(len(dialogues))])
    with torch.no_grad():
        return model.eval()(**batch).loss.item()


def test_composed_parts_are_the_sources_and_a_drawn_projector(stage_1, difflmm_repo, tmp_path):
    composed, converted = weights(stage_1 / "composed"), weights(difflmm_repo)
    assert composed.keys() == converted.keys()
    for name in composed.keys() - {name for name in composed if "language_model.layers" in name}:
        assert torch.equal(composed[name], converted[name]) == (not name.startswith(LEARNS)), name
    linear = composed["model.multi_modal_projector.linear.0.weight"]
    bound = linear.shape[1] ** -0.5
    assert 0.95 * bound < linear.abs().max() <= bound
    assert linear.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (composed["model.multi_modal_projector.sd_norm_layer.weight"] == 1).all()
    for name in ("model.multi_modal_projector.vt_pe", "model.implicit_captioner.clip_pe"):
        assert composed[name].std().item() == pytest.approx(1, rel=0.05)
    compose({**recorded_parts(), "seed": 1, "diffusion_text": "empty", "normalize_once": True}, tmp_path / "other")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "other")
    assert not torch.equal(model.state_dict()["model.multi_modal_projector.linear.0.weight"], linear)
    assert model.model.implicit_captioner is None
    assert len(model.config.empty_prompt_ids) == 77
    assert model.config.normalize_twice is False


def test_the_first_stage_trains_projector_and_caption_alone(stage_1, data):
    before, after = weights(stage_1 / "composed"), weights(stage_1)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (not name.startswith(LEARNS)), name
    settings = {"captions": True, "pad_images": False}
    losses = [loss_of(repo, data, "captions.json", **settings) for repo in (stage_1 / "composed", stage_1)]
    assert losses[1] < 0.8 * losses[0]
    assert "curious user" in AutoProcessor.from_pretrained(stage_1).chat_template


@pytest.fixture(scope="module")
def stage_2(stage_1, data, tmp_path_factory):
    """Two epochs of two batches, one of text and one with images, and a run that was stopped in the second."""
    folder = tmp_path_factory.mktemp("stage2")
    arguments = (
        *FAST,
        f"model={stage_1}",
        f"data.path={data / 'rows.json'}",
        f"data.options.images={data}",
        *("lora.r=4", "lora.lora_alpha=8", "arguments.learning_rate=0.01", "arguments.num_train_epochs=2"),
        *("learning_rates={'model\\.(multi_modal_projector|implicit_captioner)\\.': 1.0e-3}",),
        *("arguments.save_strategy=steps", "arguments.save_steps=3", "arguments.save_total_limit=9"),
        "arguments.bf16=false",
    )
    whole = run_recipe(load_recipe("difflmm_finetune", arguments), folder / "whole")
    shutil.copytree(whole / "checkpoint-3", folder / "stopped" / "checkpoint-3")
    resumed = run_recipe(load_recipe("difflmm_finetune", arguments), folder / "stopped", resume=True)
    return whole, resumed


def test_the_second_stage_trains_adapters_projector_and_caption(stage_1, stage_2, data):
    whole, _ = stage_2
    before, after = weights(stage_1), weights(whole)
    adapted = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for name, value in before.items():
        learned = name.startswith(LEARNS) or (
            name.startswith("model.language_model.layers.") and any(module in name for module in adapted)
        )
        assert torch.equal(value, after[name]) != learned, name
    assert loss_of(whole, data, "rows.json") < loss_of(stage_1, data, "rows.json")


def test_a_resumed_run_ends_where_the_whole_one_does(stage_2):
    """The noise of the diffusion, dropout and the order of rows go on where they were."""
    whole, resumed = map(weights, stage_2)
    for name, value in whole.items():
        torch.testing.assert_close(value, resumed[name], atol=1e-6, rtol=1e-5)


def test_what_was_trained_is_verified_and_published(stage_1, monkeypatch, tmp_path):
    allow_only_this_machine(monkeypatch)
    report = verify_repository(stage_1)
    assert report.ok, report.problems
    with HubServer() as hub:
        publish(stage_1, "me/difflmm", endpoint=hub.endpoint)
        clone = hub.download("me/difflmm", tmp_path / "clone")
    assert not any(path.is_relative_to(clone / "composed") for path in clone.rglob("*"))
    assert AutoModelForImageTextToText.from_pretrained(clone).config.timestep == 100
    card = (clone / "README.md").read_text(encoding="utf-8")
    assert "The use restrictions of Stable Diffusion's licence travel with every copy." in card
    assert "Stable Diffusion" in card
    assert "vicuna-7b-v1.5" in card


def test_what_was_trained_points_for_attend_and_segment(stage_2, data, tmp_path):
    convert_attend_and_segment(stage_2[0], sam=recorded_sam(), out=tmp_path / "repo", phrase_extractor="rules")
    model, processor = (kind.from_pretrained(tmp_path / "repo") for kind in (AutoModel, AutoProcessor))
    inputs = processor(
        images=data / "a.png", text="What is there?", answer="A brown dog and a tree.", return_tensors="pt"
    )
    with torch.no_grad():
        (result,) = processor.post_process_segmentation(model(**inputs), inputs)
    assert [segment.label for segment in result.segments] == ["A brown dog", "a tree"]


def test_batches_are_those_of_llava(stage_1, data):
    processor, dialogues = AutoProcessor.from_pretrained(stage_1), RegionDialogues(data / "rows.json")
    rows = [dialogues[index] for index in range(4)]
    batch = DialogueCollator(processor, share_images=True)(rows)
    assert batch["pixel_values"].shape[0] == 1
    assert batch["image_index"].tolist() == [0, 0]
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [IMAGE_TOKENS, 0, IMAGE_TOKENS, 0]
    learned = [processor.tokenizer.decode(row[row != -100]).replace(" ", "") for row in batch["labels"]]
    assert learned == ["Adog.</s>Yes,adog.</s>", "Hithere!</s>", "Brown.</s>", "Seeyou.</s>"]
    # The image comes first in its message, wherever the row has it.
    first = processor.tokenizer.decode(batch["input_ids"][0][batch["input_ids"][0] != processor.image_token_id])
    assert first.index("USER:") < first.index("What is this?") < first.index("ASSISTANT:")
    assert dialogues.signed_lengths() == [12, -3, 4, -3]
    apart = DialogueCollator(processor)(rows)
    assert "image_index" not in apart
    assert torch.equal(apart["pixel_values"][0], batch["pixel_values"][0])
    assert torch.equal(*apart["pixel_values"])


@pytest.mark.parametrize(
    ("rows", "images", "message"),
    [
        ("rows.json", ".", "2 of 4 rows of .* have no `image`, the first is 'sharegpt_1'; captions need one"),
        ("captions.json", "nowhere", "There is no folder .*nowhere"),
        ("missing.json", ".", "There is no file .*missing.json"),
    ],
)
def test_data_that_cannot_be_used_is_refused_before_a_model_is_made(data, tmp_path, rows, images, message):
    overrides = [f"data.path={data / rows}", f"data.options.images={data / images}"]
    with pytest.raises(DataFileError, match=message):
        run_recipe(load_recipe("difflmm_pretrain", overrides), tmp_path / "out", compose=compose)
    assert not (tmp_path / "out" / "composed").exists()


def test_recipes_that_cannot_be_followed(data, tmp_path):
    with pytest.raises(RecipeError, match="does not name the model to start from"):
        run_recipe(load_recipe("difflmm_pretrain", ["parts=null"]), tmp_path / "out")
    with pytest.raises(RecipeError, match="does not name the model to start from"):
        run_recipe(load_recipe("difflmm_finetune"), tmp_path / "out")
    with pytest.raises(RecipeError, match="image_folder knows no lengths"):
        load_recipe("difflmm_finetune", ["data.kind=image_folder"])
    with pytest.raises(ConversionError, match="cannot be made without diffusion="):
        compose({**recorded_parts(), "diffusion": None}, tmp_path / "out")
    with pytest.raises(ConversionError, match=r"diffusion_block is 7; allowed is 0 to 3"):
        compose({**recorded_parts(), "diffusion_block": 7}, tmp_path / "out")
    with pytest.raises(ConversionError, match=r"There is no model_index\.json"):
        compose({**recorded_parts(), "diffusion": str(data)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_published_settings():
    first, second = load_recipe("difflmm_pretrain"), load_recipe("difflmm_finetune")
    assert [recipe.arguments["learning_rate"] for recipe in (first, second)] == [1e-3, 2e-4]
    assert [recipe.arguments["per_device_train_batch_size"] for recipe in (first, second)] == [32, 16]
    for recipe in (first, second):
        arguments = recipe.arguments
        assert (arguments["num_train_epochs"], arguments["warmup_steps"], arguments["weight_decay"]) == (1, 0.03, 0.0)
        assert (arguments["lr_scheduler_type"], arguments["bf16"]) == ("cosine", True)
        assert recipe.data.collator["max_length"] == 2048
    assert (second.lora.r, second.lora.lora_alpha, second.lora.lora_dropout) == (128, 256, 0.05)
    assert list(second.learning_rates.values()) == [2e-5]
    assert (first.data.collator["pad_images"], second.data.collator["pad_images"]) == (False, True)
    assert second.data.group_by_modality_length
    # The options of the README are the defaults of the published model.
    assert {name: first.parts[name] for name in ("diffusion_block", "timestep", "ensemble_size", "image_size")} == {
        "diffusion_block": 1,
        "timestep": 100,
        "ensemble_size": 1,
        "image_size": 384,
    }
