"""ViP-LLaVA's three stages, tiny: visual prompts drawn on the fly, batches, losses that fall, repos that load."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.compose import compose
from reasonseg.data.data_files import DataFileError
from reasonseg.data.dialogues import RegionDialogues
from reasonseg.processing.chat import IMAGE_TOKEN
from reasonseg.training.recipe import RecipeError, load_recipe
from reasonseg.training.regions import DialogueCollator
from reasonseg.training.run import run_recipe
from tests.support.tiny_vip_llava import IMAGE_TOKENS, SIDE, write_parts


FAST = (
    *("dtype=auto", "arguments.bf16=false", "arguments.use_cpu=true", "arguments.dataloader_num_workers=0"),
    *("arguments.disable_tqdm=true", "arguments.logging_steps=1", "arguments.activation_checkpointing=false"),
    *("arguments.per_device_train_batch_size=4", "matmul_precision=highest", "arguments.save_strategy='no'"),
    *("arguments.lr_scheduler_type=constant", "arguments.warmup_steps=0"),
)
ROWS = [
    {
        "id": "refcocog-gpt4v-0",
        "image": "a.png",
        "bboxes": [[5, 5, 30, 30]],
        "segmentations": [[[5, 5, 30, 5, 30, 30, 5, 30]]],
        "conversations": [
            {"from": "human", "value": "What is <bbox>?"},
            {"from": "gpt", "value": "A dog."},
            {"from": "human", "value": "And <bbox>?"},
            {"from": "gpt", "value": "Still a dog."},
        ],
    },
    {
        "id": "refcocog-1",
        "image": "b.png",
        "bboxes": [[5, 5, 30, 30]],
        "segmentations": [None],
        "answer": "a cat",
    },
    {
        "id": "pointQA_twice-2",
        "image": "b.png",
        "bboxes": [[10, 10, 40, 40]],
        "general_question": "How many?",
        "answer": "2",
    },
    {"id": 3, "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "Hi!"}]},
    {
        "id": "plain",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "Caption it.\n<image>"}, {"from": "gpt", "value": "an image"}],
    },
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny language model and CLIP tower, as their repositories look."""
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(folder / name)
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    captions = [row for row in ROWS if row["id"] == "plain"]
    (folder / "captions.json").write_text(json.dumps(captions * 4), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def composed(parts, tmp_path_factory):
    """The repository of a model of the parts."""
    return compose(parts, tmp_path_factory.mktemp("composed") / "repo").out


@pytest.fixture(scope="module")
def processor(composed):
    return AutoProcessor.from_pretrained(composed)


def test_dialogues_depend_on_seed_epoch_and_row(data):
    dialogues = RegionDialogues(data / "rows.json", seed=1)
    first = [dialogues[0] for _ in range(2)]
    assert first[0].conversation == first[1].conversation
    assert first[0].image.tobytes() == first[1].image.tobytes() != Image.open(data / "a.png").tobytes()
    dialogues.set_epoch(1)
    assert dialogues[0].image.tobytes() != first[0].image.tobytes()
    assert RegionDialogues(data / "rows.json", seed=2)[0].image.tobytes() != first[0].image.tobytes()
    assert dialogues[3].image is None
    # the original's short descriptions come without their image
    assert dialogues[1].image is None
    shown = RegionDialogues(data / "rows.json", add_missing_images=True)[1]
    assert shown.image is not None
    assert shown.conversation.turns[0][0].startswith(f"{IMAGE_TOKEN}\nDescribe the")
    assert len(RegionDialogues(data / "rows.json", limit=2)) == 2
    with pytest.raises(IndexError):
        dialogues[5]


def test_workers_follow_the_epoch(data):
    """Workers of a persistent loader are started before the second epoch is announced."""
    dialogues = RegionDialogues(data / "rows.json", limit=1)
    loader = DataLoader(dialogues, batch_size=None, num_workers=1, persistent_workers=True)
    drawn = []
    for epoch in (0, 1):
        dialogues.set_epoch(epoch)
        (dialogue,) = loader
        assert dialogue.image.tobytes() == dialogues[0].image.tobytes()
        drawn.append(dialogue.image.tobytes())
    assert drawn[0] != drawn[1]


def test_rows_that_cannot_be_used_are_replaced(data, tmp_path, caplog):
    rows = [{**ROWS[0], "image": "missing.png"}, ROWS[0], {**ROWS[0], "bboxes": [[900, 900, 999, 999]]}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    dialogues = RegionDialogues(path, data)
    assert [dialogue.conversation.turns[0][1] for dialogue in dialogues] == ["A dog."] * 3
    assert "missing.png" in caplog.text
    path.write_text(json.dumps(rows[:1]), encoding="utf-8")
    with pytest.raises(DataFileError, match="in a row cannot be used"):
        RegionDialogues(path, data)[0]
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataFileError, match="no rows to learn from"):
        RegionDialogues(path, data)


def test_batches_have_labels_on_all_answers(data, processor):
    dialogues = RegionDialogues(data / "rows.json")
    batch = DialogueCollator(processor)([dialogues[index] for index in (0, 3, 2)])
    assert batch["pixel_values"].shape == (2, 3, SIDE, SIDE)
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [IMAGE_TOKENS, 0, IMAGE_TOKENS]
    said = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert [text.replace(" ", "") for text in said] == ["Adog.</s>Stilladog.</s>", "Hi!</s>", "2</s>"]
    assert batch["attention_mask"][1, -1] == 0  # padded on the right
    alone = DialogueCollator(processor)([dialogues[3]])
    assert "pixel_values" not in alone
    length = int(batch["attention_mask"][0].sum()) - 5
    cut = DialogueCollator(processor, max_length=length)([dialogues[0]])
    assert torch.equal(cut["labels"][0], batch["labels"][0, :length])


def test_captions(data, processor):
    dialogues = RegionDialogues(data / "rows.json")
    collator = DialogueCollator(processor, captions=True, pad_images=False)
    batch = collator([dialogues[4], dialogues[2]])
    said = [processor.tokenizer.decode(row[row != -100]).strip() for row in batch["labels"]]
    assert said == ["an image", "2"]
    assert (batch["labels"] != -100).sum(1).tolist() == (batch["attention_mask"].sum(1) - 1 - IMAGE_TOKENS).tolist()
    # The caption begins like a text of its own, as in the original, which encodes it apart.
    caption = processor.tokenizer("an image\n", add_special_tokens=False)["input_ids"]
    image = [processor.image_token_id] * IMAGE_TOKENS
    assert batch["input_ids"][0].tolist() == [processor.tokenizer.bos_token_id, *image, *caption]
    padded = DialogueCollator(processor, captions=True)([dialogues[4]])
    assert not torch.equal(padded["pixel_values"][0], batch["pixel_values"][0])
    cut = DialogueCollator(processor, captions=True, max_length=7)([dialogues[4]])
    assert torch.equal(cut["labels"], batch["labels"][:1, :7])
    with pytest.raises(ValueError, match="comes without an image"):
        collator([dialogues[3]])


def settings(*overrides: str) -> list[str]:
    return [*FAST, *overrides]


@pytest.fixture
def history(monkeypatch):
    """The log of the last training."""
    from reasonseg.training import run

    logs = []

    class Recording(run.ReasoningSegmentationTrainer):
        def log(self, values, start_time=None):
            super().log(values, start_time)
            logs.append(dict(values))

    monkeypatch.setattr(run, "ReasoningSegmentationTrainer", Recording)
    return logs


def train(name, out, *overrides, resume=False):
    return run_recipe(load_recipe(name, settings(*overrides)), out, resume, compose=compose)


@pytest.fixture(scope="module")
def stage_1(parts, data, tmp_path_factory):
    """Trained as it is typed."""
    out = tmp_path_factory.mktemp("stage1") / "repo"
    overrides = settings(
        f"parts.language_model={parts['language_model']}",
        f"parts.vision_tower={parts['vision_tower']}",
        f"data.path={data / 'captions.json'}",
        f"data.options.images={data}",
        "arguments.max_steps=12",
        "arguments.learning_rate=0.02",
    )
    options = [part for override in overrides for part in ("--set", override)]
    result = CliRunner().invoke(app, ["train", "vip_llava_stage1", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return out


def test_the_first_stage_trains_the_projector_alone(composed, stage_1):
    start = AutoModelForImageTextToText.from_pretrained(composed)
    trained = AutoModelForImageTextToText.from_pretrained(stage_1)
    names = dict(start.named_parameters())
    changed = {
        name
        for name, value in trained.named_parameters()
        if "projector" in name or not torch.equal(value, names[name])
    }
    assert changed == {name for name in names if "multi_modal_projector" in name}
    assert AutoProcessor.from_pretrained(stage_1).chat_template is not None


def test_the_second_stage_lowers_the_loss(stage_1, data, tmp_path, history):
    before = AutoModelForImageTextToText.from_pretrained(stage_1)
    out = train(
        "vip_llava_stage2",
        tmp_path / "repo",
        f"model={stage_1}",
        f"data.path={data / 'rows.json'}",
        f"data.options.images={data}",
        "data.options.alpha=128",
        "arguments.max_steps=24",
        "arguments.learning_rate=0.005",
    )
    values = [entry["loss"] for entry in history if "loss" in entry]
    assert len(values) == 24
    assert np.mean(values[-4:]) < 0.5 * np.mean(values[:4])
    after = AutoModelForImageTextToText.from_pretrained(out)
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        frozen = ".vision_tower." in name
        assert frozen == torch.equal(old, new) or "embed_tokens" in name, name
    # What was learned survives being stored.
    processor = AutoProcessor.from_pretrained(out)
    batch = DialogueCollator(processor)([RegionDialogues(data / "rows.json")[3]])
    assert after(**batch).loss < before(**batch).loss


@pytest.mark.slow
def test_lora_with_its_own_rate_for_the_projector(stage_1, data, tmp_path, history):
    arguments = (
        f"model={stage_1}",
        f"data.path={data / 'rows.json'}",
        f"data.options.images={data}",
        "lora.r=8",
        "lora.lora_alpha=16",
        "lora.lora_dropout=0.0",
        "data.options.limit=4",  # every step sees all
        "arguments.learning_rate=0.01",
        "arguments.max_steps=24",
        "arguments.save_strategy=steps",
        "arguments.save_steps=16",
        "arguments.save_total_limit=3",
    )
    whole = train("vip_llava_lora", tmp_path / "whole", *arguments)
    values = [entry["loss"] for entry in history if "loss" in entry]
    assert np.mean(values[-4:]) < 0.85 * np.mean(values[:4])
    stopped = tmp_path / "stopped"
    shutil.copytree(whole / "checkpoint-16", stopped / "checkpoint-16")
    resumed = train("vip_llava_lora", stopped, *arguments, resume=True)
    one, other = (AutoModelForImageTextToText.from_pretrained(repo).state_dict() for repo in (whole, resumed))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=1e-5)
    start = AutoModelForImageTextToText.from_pretrained(stage_1).state_dict()
    assert not torch.equal(
        start["model.language_model.layers.0.mlp.up_proj.weight"],
        one["model.language_model.layers.0.mlp.up_proj.weight"],
    )
    moved = (
        (start["model.multi_modal_projector.linear_1.weight"] - one["model.multi_modal_projector.linear_1.weight"])
        .abs()
        .max()
    )
    assert 0 < moved < 24 * 2.1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=x", "parts.template=llava_v1"), "give one of them"),
        (("data.path=",), "name the JSON file"),
        (("optimizer={}", "learning_rates={x: 1.0}"), "leave out `optimizer`"),
    ],
)
def test_recipes_that_cannot_be_followed(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("vip_llava_stage1", overrides)


def test_options_that_do_not_exist(data, tmp_path):
    recipe = load_recipe("vip_llava_stage2", [f"data.path={data / 'rows.json'}", "data.options={color: red}"])
    with pytest.raises(RecipeError, match=r"data.options of regions: .*color"):
        recipe.kind.dataset(recipe)
    recipe = load_recipe("vip_llava_stage2", ["data.collator={longest: 7}"])
    with pytest.raises(RecipeError, match=r"data.collator of regions: .*longest"):
        recipe.kind.collator(recipe, None)


def test_published_settings():
    stages = [load_recipe(f"vip_llava_stage{number}") for number in (1, 2, 3)]
    assert [stage.arguments["learning_rate"] for stage in stages] == [1e-3, 2e-5, 2e-7]
    assert [stage.arguments["per_device_train_batch_size"] for stage in stages] == [32, 16, 16]
    for stage in stages:
        arguments = stage.arguments
        assert (arguments["num_train_epochs"], arguments["warmup_steps"], arguments["weight_decay"]) == (1, 0.03, 0.0)
        assert (arguments["lr_scheduler_type"], arguments["bf16"]) == ("cosine", True)
        assert stage.data.collator["max_length"] == 2048
    lora = load_recipe("vip_llava_lora")
    # Rows of the published data over the samples of a step: each run is saved before it ends.
    for stage, steps in zip(
        [*stages, lora], (558_000 // 256, 1_200_000 // 128, 26_000 // 128, 1_200_000 // 128), strict=True
    ):
        assert stage.arguments["save_steps"] < steps
        assert stage.arguments["save_total_limit"] == 1
    assert (lora.lora.r, lora.lora.lora_alpha, lora.arguments["learning_rate"]) == (128, 256, 2e-4)
    assert list(lora.learning_rates.values()) == [2e-5]
