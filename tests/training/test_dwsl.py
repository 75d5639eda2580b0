"""Discriminator and weights of IVM's training: from labels of people and machines to a weighted loss."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModel, TrainingArguments

from reasonseg.data.example import MaskingExample
from reasonseg.data.ivm_mix import resize_mask
from reasonseg.training import dwsl, dwsl_stages
from reasonseg.training.dwsl import WeightedExamples, WeightRule, read_scores, repair_scores, score_examples
from reasonseg.training.dwsl_stages import (
    DISCRIMINATOR_FILE,
    SETTINGS_FILE,
    build_discriminator,
    keep_settings,
    train_discriminator,
)
from reasonseg.training.ivm_discriminator import (
    DiscriminatorCollator,
    IvmDiscriminator,
    apply_mask,
    human_share,
    load_discriminator,
    save_discriminator,
)
from reasonseg.training.ivm_mix import MaskingCollator
from reasonseg.training.recipe import LoraRecipe, RecipeError, load_recipe
from reasonseg.training.run import run_recipe
from reasonseg.training.trained_parameters import add_lora, has_lora, remove_lora
from reasonseg.training.trainer import training_arguments
from tests.support.tabletop_masking import SIDE, masking_model, masking_processor


@pytest.fixture(scope="module")
def processor():
    return masking_processor()


@pytest.fixture
def model(processor):
    return masking_model(processor, 0, width=16)


def sided_examples(count: int) -> list[MaskingExample]:
    """Noise; people mark the left half and machines the right."""
    rng, left = np.random.default_rng(0), np.zeros((SIDE, SIDE), dtype=np.float32)
    left[:, : SIDE // 2] = 1
    return [
        MaskingExample(
            Image.fromarray(rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)),
            "What is the red cup?",
            left if index % 2 else 1 - left,
            human=bool(index % 2),
        )
        for index in range(count)
    ]


# ---- data -----------------------------------------------------------------------------------------------------------


def test_masks_paint_white_what_does_not_matter():
    image = Image.fromarray(np.full((2, 2, 3), 100, dtype=np.uint8))
    masked = np.asarray(apply_mask(image, np.array([[1.0, 0.0], [0.5, 1.0]])))
    assert masked[..., 0].tolist() == [[100, 255], [178, 100]]
    with pytest.raises(ValueError, match=r"must be \(2, 2\)"):
        apply_mask(image, np.ones((3, 2)))


def test_masks_are_averaged_down():
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:, :32] = 1
    small = resize_mask(mask, 8, 16)
    assert small.shape == (8, 16)
    assert small.mean() == pytest.approx(0.5, abs=0.01)
    assert resize_mask(mask, 64, 64) is mask


def test_masking_batches(processor, model):
    examples = sided_examples(3)
    examples[1].weight = 2.5
    batch = MaskingCollator(processor, mask_size=16)(examples)
    assert batch["mask_labels"].shape == (3, 16, 16)
    assert batch["sample_weights"].tolist() == [1.0, 2.5, 1.0]
    assert batch["mask_labels"][1, :, :7].min() == 1
    assert batch["mask_labels"][0, :, :7].max() == 0
    with torch.no_grad():
        weighted = model(**batch).loss
    parts = []
    for row in range(3):
        single = MaskingCollator(processor, mask_size=16)([examples[row]])
        single["sample_weights"] = torch.ones(1)
        with torch.no_grad():
            parts.append(float(model(**single).loss) * examples[row].weight)
    assert float(weighted) == pytest.approx(sum(parts) / 3, rel=1e-4)


def test_the_discriminator_is_asked_about_the_masked_image(processor):
    examples = sided_examples(2)
    batch = DiscriminatorCollator(processor)(examples)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [0.0, 1.0]
    question = "What is the red cup? \n Can you follow instruction above based on the given image?"
    masked = [apply_mask(example.image, example.mask) for example in examples]
    expected = processor(images=masked, text=[question] * 2, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    white = processor(images=[Image.new("RGB", (SIDE, SIDE), "white")], text=["x"], return_tensors="pt")
    assert torch.equal(batch["pixel_values"][0, ..., : SIDE // 2], white["pixel_values"][0, ..., : SIDE // 2])


# ---- discriminator --------------------------------------------------------------------------------------------------


def test_both_kinds_count_the_same_however_many_there_are(processor, model):
    discriminator = IvmDiscriminator(model.vlm, human_share=0.25).eval()
    batch = DiscriminatorCollator(processor)(sided_examples(8))
    batch["labels"] = torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])
    output = discriminator(**batch)
    each = F.binary_cross_entropy_with_logits(output["logits"], batch["labels"], reduction="none")
    people = batch["labels"] > 0.5
    torch.testing.assert_close(output["loss"], 0.5 * each[people].mean() + 0.5 * each[~people].mean())
    assert "loss" not in discriminator(**{name: value for name, value in batch.items() if name != "labels"})
    scores = discriminator.scores(batch)
    torch.testing.assert_close(scores, output["logits"].sigmoid().detach())


def test_padding_does_not_matter(processor, model):
    discriminator = IvmDiscriminator(model.vlm).eval()
    examples = sided_examples(2)
    examples[1].instruction = "Can you see the small green bottle and the plate in this picture?"
    collator = DiscriminatorCollator(processor)
    together = discriminator.scores(collator(examples))
    apart = torch.cat([discriminator.scores(collator([example])) for example in examples])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    short = collator(examples[:1])
    ids, mask = short["input_ids"], short["attention_mask"]
    padding = torch.full((1, 5), processor.tokenizer.pad_token_id)
    on_the_right = {
        **short,
        "input_ids": torch.cat([ids, padding], dim=1),
        "attention_mask": torch.cat([mask, torch.zeros_like(padding)], dim=1),
    }
    torch.testing.assert_close(discriminator.scores(on_the_right), apart[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("flags", [[True, True], [False]])
def test_one_kind_alone_cannot_be_told_apart(flags):
    with pytest.raises(ValueError, match="needs some of both"):
        human_share(flags)
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        IvmDiscriminator(torch.nn.Identity(), human_share=float(flags[0]))


@pytest.mark.slow
def test_it_learns_who_drew_what(processor, model, tmp_path):
    before = {name: value.clone() for name, value in model.vlm.state_dict().items()}
    discriminator = build_discriminator(model.vlm, 0.5, lora=None)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=120,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    examples = sided_examples(32)
    train_discriminator(discriminator, processor, examples, arguments)
    scores = score_examples(discriminator, examples, DiscriminatorCollator(processor), tmp_path / "scores", 8)
    people = [score for score, example in zip(scores, examples, strict=True) if example.human]
    machines = [score for score, example in zip(scores, examples, strict=True) if not example.human]
    assert min(people) > max(machines)
    after = model.vlm.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "IVM's own model must not learn"


def test_adapters_come_and_go_without_a_trace(model, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    discriminator = build_discriminator(model.vlm, 0.5, LoraRecipe(r=2))
    trained = {name for name, parameter in discriminator.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name.startswith("head.") for name in trained)
    assert any(".lora_" in name for name in trained)
    assert any(name.startswith("head.") for name in trained)
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            if ".lora_B" in name:
                parameter.add_(1.0)
    save_discriminator(discriminator, tmp_path / "d.safetensors")
    remove_lora(model.vlm)
    assert not has_lora(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    again = build_discriminator(model.vlm, 0.5, LoraRecipe(r=2))
    load_discriminator(again, tmp_path / "d.safetensors")
    assert all(
        torch.equal(again.state_dict()[name], discriminator.head.state_dict()[name[5:]])
        for name in trained
        if name.startswith("head.")
    )
    remove_lora(model.vlm)
    elsewhere = build_discriminator(model.vlm, 0.5, LoraRecipe(r=2, targets=r"vlm\..*language_model\..*\.o_proj"))
    adapted = {name for name, _ in elsewhere.named_parameters() if ".lora_" in name}
    assert adapted
    assert all(".o_proj." in name for name in adapted)
    remove_lora(model.vlm)
    add_lora(again, 3, 16, 0.0)
    with pytest.raises((ValueError, RuntimeError)):
        load_discriminator(again, tmp_path / "d.safetensors")
    whole = build_discriminator(masking_model(masking_processor(), 0, width=16).vlm, 0.5, None)
    with pytest.raises(ValueError, match="trains other parts"):
        load_discriminator(whole, tmp_path / "d.safetensors")


# ---- weights --------------------------------------------------------------------------------------------------------


def test_weights_of_scores():
    scores = [0.0, 0.5, 1.0]
    torch.testing.assert_close(WeightRule(0.2, normalise=False)(scores), torch.tensor([0.2, 0.6, 1.0]))
    torch.testing.assert_close(WeightRule(0.0, 2.0, normalise=False)(scores), torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(WeightRule(0.2)(scores), torch.tensor([0.2, 0.6, 1.0]) / 0.6)
    assert WeightRule(1.0)([0.3, 0.9]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "scores", "message"),
    [
        ({"floor": 1.5}, [0.5], "floor is 1.5"),
        ({"sharpness": 0}, [0.5], "sharpness is 0"),
        ({}, [], r"numbers in \[0, 1\]"),
        ({}, [0.5, 1.2], r"numbers in \[0, 1\]"),
        ({}, [float("nan")], r"numbers in \[0, 1\]"),
        ({"floor": 0.0}, [0.0, 0.0], "raise `floor`"),
    ],
)
def test_wrong_weights(options, scores, message):
    with pytest.raises(ValueError, match=message):
        WeightRule(**options)(scores)


def test_weighted_examples():
    data = WeightedExamples(sided_examples(2), [0.5, 2.0])
    assert [example.weight for example in data] == [0.5, 2.0]
    with pytest.raises(ValueError, match="2 examples and 1 weights"):
        WeightedExamples(sided_examples(2), [1.0])


class CountingDiscriminator(torch.nn.Module):
    """Scores each example by the mean of its mask, and remembers how many it saw."""

    seen = 0

    def scores(self, examples):
        self.seen += len(examples)
        return torch.tensor([float(example.mask[0, 0]) for example in examples])


def test_scoring_goes_on_where_it_stopped(tmp_path):
    examples, folder = sided_examples(10), tmp_path / "scores"
    first = CountingDiscriminator()
    told = []
    whole = score_examples(first, examples, list, folder, 4, progress=lambda done, of: told.append((done, of)))
    assert whole == [float(example.human) for example in examples]
    assert told == [(4, 10), (8, 10), (10, 10)]
    (file,) = folder.iterdir()
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:6]) + lines[6][:-5], encoding="utf-8")  # killed within the seventh
    second = CountingDiscriminator()
    assert score_examples(second, examples, list, folder, 4) == whole
    assert (first.seen, second.seen) == (10, 4)
    with pytest.raises(ValueError, match="scores of 10 examples, but there are 4"):
        score_examples(second, sided_examples(4), list, folder, 4)
    file.write_text(json.dumps({"index": 0}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_scores(folder, 10)


def test_a_cut_off_line_is_removed_by_one_process_only(tmp_path):
    line = json.dumps({"index": 0, "of": 2, "score": 0.5}) + "\n"
    file = tmp_path / "scores-00000.jsonl"
    file.write_text(line + line[:9], encoding="utf-8")
    assert read_scores(tmp_path, 2) == {0: 0.5}
    assert file.read_text(encoding="utf-8") == line + line[:9], "reading must not write"
    repair_scores(tmp_path)
    assert file.read_text(encoding="utf-8") == line
    assert list(tmp_path.iterdir()) == [file]


def test_other_processes_wait_for_the_repair(tmp_path, monkeypatch):
    """The second of two processes, the first one acting while the second waits."""
    examples, events = sided_examples(4), []
    lines = [json.dumps({"index": index, "of": 4, "score": 0.5}) + "\n" for index in range(4)]
    mine, other = tmp_path / "scores-00001.jsonl", tmp_path / "scores-00000.jsonl"
    mine.write_text(lines[0] + lines[1][:9], encoding="utf-8")

    class SecondProcess:
        is_main_process, process_index, num_processes = False, 1, 2

        def wait_for_everyone(self):
            events.append("wait")
            if len(events) == 1:
                assert mine.read_text(encoding="utf-8") == lines[0] + lines[1][:9]
                repair_scores(tmp_path)
            elif events.count("wait") == 3:
                other.write_text(lines[1] + lines[3], encoding="utf-8")

    def reading(folder, count):
        events.append("read")
        return read_scores(folder, count)

    monkeypatch.setattr(dwsl, "PartialState", SecondProcess)
    monkeypatch.setattr(dwsl, "read_scores", reading)
    discriminator = CountingDiscriminator()
    assert score_examples(discriminator, examples, list, tmp_path) == [0.5, 0.5, 0.0, 0.5]
    assert events == ["wait", "read", "wait", "wait", "read"]
    assert discriminator.seen == 1


# ---- recipe ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mix(tmp_path):
    """A data set on disk, drawn by people and machines, and an untrained IVM."""
    for source in ("human", "machine"):
        folder, lines = tmp_path / source, []
        folder.mkdir()
        for index, example in enumerate(sided_examples(8)):
            if example.human == (source == "human"):
                example.image.save(folder / f"img_{index}.jpg")
                Image.fromarray((example.mask * 160).astype(np.uint8)).save(folder / f"mask_{index}.jpg")
                lines.append(json.dumps({"uuid": index, "instruction": [example.instruction]}))
        (folder / "meta.jsonl").write_text("\n".join(lines), encoding="utf-8")
    processor = masking_processor()
    masking_model(processor, 0, width=16).save_pretrained(tmp_path / "repo")
    processor.save_pretrained(tmp_path / "repo")
    return tmp_path


def recipe_of(mix, steps: int, lora: bool):
    sources = [
        f"{{meta: {mix}/{name}/meta.jsonl, images: {mix}/{name}, human: {str(name == 'human').lower()}}}"
        for name in ("human", "machine")
    ]
    return load_recipe(
        "ivm",
        [
            f"model={mix / 'repo'}",
            f"data.sources=[{', '.join(sources)}]",
            "dwsl.steps=2",
            "dwsl.batch_size=4",
            "mask_size=32",
            f"lora={'{r: 2}' if lora else 'null'}",
            f"arguments={{max_steps: {steps}, save_steps: 1, per_device_train_batch_size: 2, use_cpu: true, "
            "disable_tqdm: true, learning_rate: 0.01, activation_checkpointing: true}",
        ],
    )


@pytest.mark.parametrize("lora", [True, False])
def test_recipe_of_both_stages(mix, lora, caplog):
    run_recipe(recipe_of(mix, 1, lora), mix / "out")
    assert (mix / "out" / "dwsl" / SETTINGS_FILE).is_file()
    stage = mix / "out" / "dwsl"
    assert (stage / DISCRIMINATOR_FILE).is_file()
    assert len(read_scores(stage / "scores", 8)) == 8
    assert "masks of people" in caplog.text
    assert not list((mix / "out").glob("*lora*"))
    before, after = AutoModel.from_pretrained(mix / "repo"), AutoModel.from_pretrained(mix / "out")
    changed = {
        name.split(".")[0]
        for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed <= {"vlm", "seg_projector", "segmenter"}
    assert "seg_projector" in changed
    encoder = "segmenter.vision_encoder."
    for name, old in before.state_dict().items():
        if name.startswith(encoder):
            assert torch.equal(old, after.state_dict()[name]), "SAM's encoder stays frozen"

    scores = sorted((stage / "scores").iterdir())
    stamps = [(stage / DISCRIMINATOR_FILE).stat().st_mtime_ns, *(file.stat().st_size for file in scores)]
    run_recipe(recipe_of(mix, 2, lora), mix / "out", resume=True)
    assert stamps == [(stage / DISCRIMINATOR_FILE).stat().st_mtime_ns, *(file.stat().st_size for file in scores)]
    assert (mix / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dwsl.steps=3", "dwsl.steps is 2 there and 3 here"),
        ("seed=7", "seed is 0 there and 7 here"),
        ("lora.r=3", "lora.r is 2 there and 3 here"),
        ("lora=null", r"lora is \{.*\} there and None here"),
        ("data.options={augment: false}", "data.options.augment is None there and False here"),
        ("model=tiny", "model is 'repo' there and 'tiny' here"),
        ("mask_size=64", "mask_size is .* there and 64 here"),
        ("dwsl.floor=0.5", None),
        ("dwsl.sharpness=2.0", None),
        ("dwsl.normalise=false", None),
        ("arguments.max_steps=9", None),
    ],
)
def test_the_first_stage_is_used_again_only_by_its_recipe(change, message, tmp_path):
    sources = "data.sources=[{meta: a, images: b, human: true}, {meta: c, images: d}]"
    settings = ["model=repo", sources, "data.options={}", "dwsl.steps=2", "lora.r=2"]
    keep_settings(load_recipe("ivm", settings), tmp_path / "dwsl")
    (file,) = (tmp_path / "dwsl").iterdir()
    assert file.name == SETTINGS_FILE
    content = file.read_text(encoding="utf-8")
    keep_settings(load_recipe("ivm", settings), tmp_path / "dwsl")
    if message is None:
        keep_settings(load_recipe("ivm", [*settings, change]), tmp_path / "dwsl")
    else:
        with pytest.raises(RecipeError, match=f"{message}.*use another --out"):
            keep_settings(load_recipe("ivm", [*settings, change]), tmp_path / "dwsl")
    assert file.read_text(encoding="utf-8") == content


def test_a_discriminator_of_another_recipe_is_not_used(mix):
    """Also where the second stage has left no checkpoint to resume from."""
    (mix / "out" / "dwsl").mkdir(parents=True)
    first = recipe_of(mix, 1, True)
    keep_settings(first, mix / "out" / "dwsl")
    other = recipe_of(mix, 1, True)
    other.first_stages["dwsl"].learning_rate = 0.5
    with pytest.raises(RecipeError, match=r"dwsl.learning_rate is 0.0001 there and 0.5 here"):
        run_recipe(other, mix / "out")
    assert not (mix / "out" / "dwsl" / DISCRIMINATOR_FILE).exists()


def test_the_warm_up_of_the_first_stage_is_its_own(mix, monkeypatch):
    given = []
    monkeypatch.setattr(dwsl_stages, "discriminator_weights", lambda *values: given.append(values[-1]) or [2.0] * 8)
    recipe = recipe_of(mix, 1, True)
    stage = recipe.first_stages["dwsl"]
    stage.steps, recipe.arguments["warmup_steps"] = 40, 500
    vlm = torch.nn.Module()
    vlm.vlm = None
    weighted = stage.run(recipe, vlm, None, recipe.kind.dataset(recipe), mix / "out", resumed=False)
    assert weighted[7].weight == 2.0
    assert [(arguments.max_steps, arguments.warmup_steps) for arguments in given] == [(40, 5)]
    assert training_arguments(recipe, mix / "out").warmup_steps == 500


def test_a_model_that_keeps_its_adapter_apart_is_not_trained(mix):
    model = masking_model(masking_processor(), 0, width=16)
    model.config.needs_adapter = True
    model.save_pretrained(mix / "repo")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r"vlm\..*language_model\..*\.q_proj"))
    adapted.save_pretrained(mix / "repo" / "adapter")
    with pytest.raises(RecipeError, match="keeps its adapter apart; convert it without --keep-lora"):
        run_recipe(recipe_of(mix, 1, True), mix / "out")
    assert not (mix / "out").exists()


def test_options_that_do_not_exist(mix):
    recipe = recipe_of(mix, 1, True)
    recipe.data.options = {"colour": "red"}
    with pytest.raises(RecipeError, match=r"data.options of ivm_mix: .*colour"):
        recipe.kind.dataset(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources=[]", "data.sources must list"),
        ("data.sources=[{meta: a}]", "needs .*images"),
        ("data.sources=[{meta: a, images: b, mask: c}]", "may have|of "),
        ("data.sources=[{meta: a, images: b, human: true}]", "masks of people and of machines"),
        ("data.kind=tabletop", "dwsl weighs examples"),
    ],
)
def test_wrong_recipes(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("ivm", [override])
