"""The collator, the Trainer and its checkpoints, with a tiny model of the tabletop world."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, TrainingArguments

from reasonseg.data.request_folder import ImageFolderExamples
from reasonseg.tabletop.dataset import TabletopDataset
from reasonseg.training.collator import Example, SegmentationCollator
from reasonseg.training.optimizers import is_hidden_matrix, muon_and_adamw
from reasonseg.training.recipe import load_recipe
from reasonseg.training.trained_parameters import add_lora, merged_state_dict, select_trained
from reasonseg.training.trainer import TRAINED_PARTS_FILE, ReasoningSegmentationTrainer
from tests.support.recorded_sa2va import converted_repo, recorded_image
from tests.support.tabletop_folder import write_dataset
from tests.support.tiny_training import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def model(processor):
    return tiny_model(processor)


def arguments(out, **kwargs) -> TrainingArguments:
    return TrainingArguments(
        str(out),
        **{
            "remove_unused_columns": False,
            "report_to": [],
            "use_cpu": True,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "max_grad_norm": 1.0,
            "disable_tqdm": True,
            **kwargs,
        },
    )


def trainer_of(model, processor, out, data=None, optimizer_factory=None, **kwargs) -> ReasoningSegmentationTrainer:
    return ReasoningSegmentationTrainer(
        model=model,
        args=arguments(out, **kwargs),
        train_dataset=data or TabletopDataset("train", 6, size=64, requests_per_scene=2, flip=True),
        data_collator=SegmentationCollator(processor, mask_size=16),
        processing_class=processor,
        decision_loss_weight=1.0,
        optimizer_factory=optimizer_factory,
    )


def test_collator(processor):
    mask = np.zeros((10, 20), dtype=bool)
    mask[:5] = True
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    examples = [
        Example(image, ["What is the red cup?", "Hello"], ["It is [SEG].", "Hello."], [[mask], []]),
        Example(image, ["What are a, b?"], ["a: [REJ], b: [SEG]."], [[None, mask]]),
    ]
    batch = SegmentationCollator(processor)(examples)
    assert batch["image_index"].tolist() == [0, 0, 1]
    assert batch["pixel_values"].shape[0] == 2
    assert [tuple(targets.shape) for targets in batch["mask_labels"]] == [(1, 10, 20), (0, 10, 20), (2, 10, 20)]
    assert batch["mask_labels"][2][0].sum() == 0
    assert torch.equal(batch["mask_labels"][2][1], torch.from_numpy(mask).float())
    tokenizer = processor.tokenizer
    answers = [tokenizer.decode(row[row != -100], skip_special_tokens=True) for row in batch["labels"]]
    assert answers[0].endswith("it is [SEG].")
    small = SegmentationCollator(processor, mask_size=4)(examples)["mask_labels"][0]
    assert small.shape == (1, 4, 4)
    torch.testing.assert_close(small[0, :, 0], torch.tensor([1.0, 5 / 6, 0.0, 0.0]), atol=0.5, rtol=0)
    assert small.mean() == pytest.approx(0.5, abs=0.1)


def test_image_folder_holds_what_was_drawn(tmp_path, processor):
    write_dataset(tmp_path, "train", 3, size=64, requests_per_scene=2)
    folder = ImageFolderExamples(tmp_path / "train")
    drawn = TabletopDataset("train", 3, size=64, requests_per_scene=2, fresh_requests=False)
    assert len(folder) == 3
    for read, original in zip(folder, drawn, strict=True):
        assert read.questions == original.questions
        assert read.answers == original.answers
        for masks, expected in zip(read.masks, original.masks, strict=True):
            for mask, target in zip(masks, expected, strict=True):
                assert (mask is None) == (target is None)
                assert mask is None or np.array_equal(mask, target)


def test_image_folder_with_a_missing_phrase(tmp_path):
    write_dataset(tmp_path, "train", 1, size=64, requests_per_scene=1)
    metadata = tmp_path / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("[SEG]", "[SEG] [SEG]", 1), encoding="utf-8")
    if "[SEG]" not in metadata.read_text(encoding="utf-8"):
        metadata.write_text(metadata.read_text(encoding="utf-8").replace("[REJ]", "[REJ] [REJ]"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: the answer .* slots but there are"):
        ImageFolderExamples(tmp_path / "train")


def test_a_step_of_sa2va(tmp_path):
    """The recorded checkpoint on LLaVA, of which the segmenter's encoder stays as it is, as in its own training."""
    repo = converted_repo("llava")
    model, processor = AutoModel.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    model.segmenter.vision_encoder.requires_grad_(False)
    image = np.asarray(recorded_image("llava", "img0_single"))
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[:100] = True
    trainer = ReasoningSegmentationTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1, save_strategy="no"),
        train_dataset=[Example(image, ["Please segment the cup.", "Hello."], ["Sure, [SEG].", "Hi."], [[mask], []])],
        data_collator=SegmentationCollator(processor),
        processing_class=processor,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "ce_loss" in entry]
    parts = [logged[name] for name in ("ce_loss", "mask_bce_loss", "mask_dice_loss")]
    assert all(value > 0 for value in parts)
    assert logged["loss"] == pytest.approx(sum(parts), rel=1e-3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("seg_projector.linear_2.weight", "vlm.lm_head.weight", "segmenter.mask_decoder.iou_token.weight"):
        assert part in changed
    assert not any(name.startswith("segmenter.vision_encoder") for name in changed)


@pytest.mark.slow
def test_fifty_steps_on_one_batch(model, processor, tmp_path):
    class OneExample(torch.utils.data.Dataset):
        examples = TabletopDataset("train", 2, size=64, requests_per_scene=1, fresh_requests=False)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return self.examples[index]

    trainer = trainer_of(
        model,
        processor,
        tmp_path,
        data=OneExample(),
        max_steps=50,
        save_strategy="no",
        optimizer_factory=lambda named: muon_and_adamw(named, 1e-2, 1e-2, 0.0),
        lr_scheduler_type="cosine",
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "ce_loss" in entry]
    assert len(history) == 50
    assert history[-1]["ce_loss"] < 0.05 * history[0]["ce_loss"]
    assert history[-1]["decision_loss"] < 0.05
    assert history[-1]["mask_bce_loss"] < 0.7 * history[0]["mask_bce_loss"]
    parts = ("ce_loss", "decision_loss", "mask_bce_loss", "mask_dice_loss")
    assert history[0]["loss"] == pytest.approx(sum(history[0][name] for name in parts), rel=1e-2)


def test_every_epoch_asks_something_else(model, processor, tmp_path):
    class Recording(TabletopDataset):
        asked: list[str] = []

        def __getitem__(self, index):
            example = super().__getitem__(index)
            self.asked.append(example.questions[0])
            return example

    data = Recording("train", 4, size=64, requests_per_scene=1, fresh_scenes=True)
    trainer_of(model, processor, tmp_path, data=data, num_train_epochs=3, save_strategy="no").train()
    epochs = [sorted(data.asked[start : start + 4]) for start in (0, 4, 8)]
    expected = []
    for epoch in range(3):
        data.set_epoch(epoch)
        expected.append(sorted(TabletopDataset.__getitem__(data, index).questions[0] for index in range(4)))
    assert epochs == expected
    assert expected[0] != expected[1] != expected[2]


@pytest.mark.slow
@pytest.mark.parametrize("muon", [False, True])
def test_resumed_run_is_bit_equal(model, processor, tmp_path, muon):
    factory = (lambda named: muon_and_adamw(named, 1e-3, 1e-3, 0.01)) if muon else None
    start = copy.deepcopy(model)
    straight = trainer_of(
        model, processor, tmp_path / "straight", max_steps=4, save_strategy="no", optimizer_factory=factory
    )
    straight.train()

    options = {"max_steps": 4, "save_steps": 2, "optimizer_factory": factory}
    first = trainer_of(copy.deepcopy(start), processor, tmp_path / "halved", **options)
    first.train()
    resumed = trainer_of(copy.deepcopy(start), processor, tmp_path / "halved", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "halved" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_accumulated_batches_equal_one(model, processor, tmp_path):
    data = TabletopDataset("train", 2, size=64, requests_per_scene=1, fresh_requests=False, several_rate=0.0)
    halves = trainer_of(
        copy.deepcopy(model),
        processor,
        tmp_path / "a",
        data=data,
        max_steps=1,
        save_strategy="no",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        optim="sgd",
    )
    halves.train()
    losses = []
    collate = SegmentationCollator(processor, mask_size=16)
    with torch.no_grad():
        for index in range(2):
            output = copy.deepcopy(model).train()(**collate([data[index]]))
            losses.append(float(output.losses["ce_loss"]))
    assert halves.state.log_history[0]["ce_loss"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_checkpoints_are_complete_repos(model, processor, tmp_path):
    trainer = trainer_of(model, processor, tmp_path, max_steps=2, save_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    names = {file.name for file in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    } <= names
    assert {"modeling_gsva.py", "processing_gsva.py", "pipeline_reasoning_segmentation.py"} <= names
    reloaded, processor_again = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    image = TabletopDataset("validation", 1, size=64)[0].image
    with torch.no_grad():
        inputs = processor_again(images=image, phrases=[["the red cup", "a ball"]], return_tensors="pt")
        expected = trainer.model.eval()(
            **processor(images=image, phrases=[["the red cup", "a ball"]], return_tensors="pt")
        )
        assert torch.equal(reloaded(**inputs).pred_masks[0], expected.pred_masks[0])


def test_lora_run_saves_reloads_and_merges(model, processor, tmp_path):
    original = copy.deepcopy(model)
    add_lora(model, r=4, lora_alpha=8, lora_dropout=0.0)
    trained = select_trained(model, load_recipe("lisa").trained)
    assert 0 < trained < sum(parameter.numel() for parameter in model.parameters())
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert any("vision_tower" in name for name in frozen)
    assert any("segmenter.vision_encoder" in name for name in frozen)
    start = copy.deepcopy(model)
    trainer = trainer_of(model, processor, tmp_path / "run", max_steps=4, save_steps=2, learning_rate=1e-2)
    trainer.train()
    for name, value in frozen.items():
        assert torch.equal(model.get_parameter(name), value), f"{name} must not learn"

    folder = tmp_path / "run" / "checkpoint-4"
    assert {name.rsplit(".", 2)[-2] for name in load_file(folder / TRAINED_PARTS_FILE) if "lora" in name} == {
        "default"
    }
    merged = AutoModel.from_pretrained(folder)
    inputs = processor(
        images=TabletopDataset("validation", 1, size=64)[0].image, phrases=[["the red cup"]], return_tensors="pt"
    )
    with torch.no_grad():
        acting, reloaded, before = model.eval()(**inputs), merged(**inputs), original.eval()(**inputs)
    torch.testing.assert_close(reloaded.logits, acting.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reloaded.pred_masks[0], acting.pred_masks[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before.logits, acting.logits, atol=1e-3)

    resumed = trainer_of(start, processor, tmp_path / "run", max_steps=4, save_steps=2, learning_rate=1e-2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_resuming_adapters_from_merged_weights_is_refused(model, processor, tmp_path):
    trainer_of(copy.deepcopy(model), processor, tmp_path, max_steps=1, save_steps=1).train()
    add_lora(model, r=4, lora_alpha=8, lora_dropout=0.0)
    select_trained(model, [])
    with pytest.raises(FileNotFoundError, match="start a new run from it"):
        trainer_of(model, processor, tmp_path, max_steps=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_merging_touches_only_adapted_weights(model):
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, r=2, lora_alpha=4, lora_dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    merged = merged_state_dict(model, model.state_dict())
    assert merged.keys() == plain.keys()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) and "language_model" in name for name in changed)


def test_patterns_that_match_nothing(model):
    with pytest.raises(ValueError, match="No parameter matches 'lm_head'"):
        select_trained(model, ["lm_head"])
    with pytest.raises(ValueError, match="No module of GsvaForReasoningSegmentation matches"):
        add_lora(model, 2, 4, 0.0, targets="nothing")


def test_identity_of_a_single_linear_projector_never_learns(model):
    projector = model.vlm.model.multi_modal_projector
    select_trained(model, None)
    assert projector.linear_2.weight.requires_grad, "a projector of two layers learns in both"
    with torch.no_grad():
        projector.linear_2.weight.copy_(torch.eye(len(projector.linear_2.weight)))
        projector.linear_2.bias.zero_()
    trained = select_trained(model, None)
    assert not projector.linear_2.weight.requires_grad
    assert not projector.linear_2.bias.requires_grad
    assert projector.linear_1.weight.requires_grad
    frozen = sum(parameter.numel() for parameter in projector.linear_2.parameters())
    assert trained == sum(parameter.numel() for parameter in model.parameters()) - frozen


def test_unused_columns_must_stay(model, processor, tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer_of(model, processor, tmp_path, remove_unused_columns=True)


def test_muon_gets_the_hidden_matrices(model):
    chosen = {name for name, parameter in model.named_parameters() if is_hidden_matrix(name, parameter)}
    assert "seg_projector.linear_1.weight" in chosen
    assert "vlm.model.language_model.layers.0.mlp.up_proj.weight" in chosen
    assert not any("embed" in name or "lm_head" in name or name.endswith("bias") for name in chosen)
    optimizer = muon_and_adamw(model.named_parameters(), 1e-3, 2e-3, 0.01)
    count = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert count == sum(parameter.numel() for parameter in model.parameters())
