"""The mixture of LISA and GSVA as batches: recorded batches of the originals, other templates, and training on it."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from reasonseg.data.data_files import DataFileError
from reasonseg.data.lisa_mixture import InstructionItem
from reasonseg.modeling.segmenters import upsample_masks
from reasonseg.training.instruction_mixture import InstructionCollator
from reasonseg.training.recipe import load_recipe
from reasonseg.training.run import run_recipe
from tests.support import recorded_processors, tiny
from tests.support.recorded_data_sets import SYSTEMS, prompts_of, recorded, recorded_arrays
from tests.support.tiny_mixture import tiny_system, write_mixture_recipe, write_tiny_repo


PLACEHOLDER = -200
CASES = [(system, name) for system in SYSTEMS for name in recorded(f"{system}/collate")]
TURNS = {
    "llava_v1": re.compile(r"USER: (.*?) ASSISTANT: (.*?)</s>", re.S),
    "llava_llama_2": re.compile(r"\[INST\] (?:<<SYS>>.*?<</SYS>>\n\n)?(.*?) \[/INST\] (.*?) </s>", re.S),
}


def items_of(case: dict, template: str) -> list[InstructionItem]:
    """The items that a recorded batch was made of, from its conversations."""
    items = []
    for number, shape in enumerate(case["masks"]):
        rows = prompts_of(case)[case["offset"][number] : case["offset"][number + 1]]
        conversations = [
            [
                text.replace("<im_start><image><im_end>", "<image>")
                for turn in TURNS[template].findall(row)
                for text in turn
            ]
            for row in rows
        ]
        slots = [sum(message.count("[SEG]") for message in messages) for messages in conversations]
        masks = np.zeros(shape, dtype=bool)
        image = Image.new("RGB", (shape[2], shape[1]))
        items.append(InstructionItem(image, "image.jpg", "data", conversations, [], masks, [False] * shape[0], slots))
    return items


def unexpanded(batch: dict, row: int, image_token_id: int) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and attention mask of a row with one placeholder for its image, as the originals hold it."""
    ids, labels, attention = (batch[name][row].tolist() for name in ("input_ids", "labels", "attention_mask"))
    kept = [
        index
        for index, token in enumerate(ids)
        if token != image_token_id or index == 0 or ids[index - 1] != image_token_id
    ]
    ids = [PLACEHOLDER if token == image_token_id else token for token in ids]
    return tuple([values[index] for index in kept] for values in (ids, labels, attention))


@pytest.mark.parametrize(("system", "name"), CASES)
def test_recorded_batches(system, name):
    case = recorded(f"{system}/collate")[name]
    arrays = {
        key: recorded_arrays(f"{system}/collate")[f"{name}/{key}"]
        for key in ("input_ids", "labels", "attention_masks")
    }
    template = "llava_llama_2" if name == "llama2" else "llava_v1"
    processor = recorded_processors.processor(system, template=template)
    collator = InstructionCollator(processor, max_length=case["model_max_length"], image_length=256)
    items = items_of(case, template)
    batch = collator(items)
    length = arrays["input_ids"].shape[1]
    for row, expected in enumerate(zip(*(arrays[key].tolist() for key in arrays), strict=True)):
        ids, labels, attention = unexpanded(batch, row, processor.image_token_id)
        missing = length - len(ids)  # rows with an image are longer by it
        ids, labels, attention = ids + [0] * missing, labels + [-100] * missing, attention + [0] * missing
        assert (ids[:length], labels[:length]) == expected[:2]
        assert attention[:length] == [int(seen) for seen in expected[2]]
        assert not any(attention[length:])
    assert [list(masks.shape) for masks in batch["mask_labels"]] == [
        [slots, *item.masks.shape[1:]] for item in items for slots in item.slots
    ]
    assert all(masks.dtype == torch.float32 for masks in batch["mask_labels"])
    shown = [PLACEHOLDER in ids for ids in arrays["input_ids"].tolist()]  # truncation may cut an image off
    of_image = np.repeat(np.arange(len(items)), np.diff(case["offset"])).tolist()
    assert batch["image_index"].tolist() == [
        image if seen else -1 for image, seen in zip(of_image, shown, strict=True)
    ]
    assert len(batch["pixel_values"]) == len(batch["sam_pixel_values"]) == len(items)


def item(conversations: list[list[str]], slots: list[int], masks: np.ndarray | None = None) -> InstructionItem:
    """An item about a grey image of 20 x 30 pixels."""
    masks = np.ones((sum(slots), 20, 30), dtype=bool) if masks is None else masks
    image = Image.new("RGB", (30, 20), "grey")
    return InstructionItem(image, "image.jpg", "data", conversations, [], masks, [False] * len(masks), slots)


class TestTruncation:
    QUESTION = ["<image>\nWhere?", "It is [SEG]. And [SEG]."]

    def collate(self, max_length, image_length=None):
        processor = recorded_processors.small_processor("lisa")
        batch = InstructionCollator(processor, max_length, image_length)([item([self.QUESTION], [2])])
        return batch, (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("[SEG]"))[0]

    def test_a_slot_that_is_cut_off_loses_its_target(self):
        whole, is_slot = self.collate(None)
        first, second = is_slot.nonzero().flatten().tolist()
        for length, left in ((second + 1, 2), (second, 1), (first, 0)):
            batch, _ = self.collate(length)
            assert batch["input_ids"].shape == (1, length)
            assert batch["mask_labels"][0].shape == (left, 20, 30)
            for name in ("input_ids", "labels", "attention_mask"):
                assert torch.equal(batch[name], whole[name][:, :length])

    def test_an_image_counts_for_the_tokens_that_are_said(self):
        """Four stand for it here; counted as 256, 300 in all leave 44 other tokens."""
        batch, _ = self.collate(300, 256)
        assert batch["input_ids"].shape == (1, 44 + 4) or batch["image_index"].tolist() == [-1]
        longer, _ = self.collate(400, 256)
        assert longer["input_ids"].shape[1] <= 144 + 4
        assert longer["image_index"].tolist() == [0]

    def test_an_image_is_not_cut_in_two(self):
        whole, _ = self.collate(None)
        image_token = recorded_processors.small_processor("lisa").image_token_id
        start = int((whole["input_ids"][0] == image_token).nonzero()[0])
        with pytest.raises(DataFileError, match="cuts through an image of 4 tokens"):
            self.collate(start + 2)
        before, _ = self.collate(start)
        assert before["image_index"].tolist() == [-1]

    def test_a_length_that_leaves_nothing_is_refused(self):
        with pytest.raises(ValueError, match="max_length=200 leaves nothing of a row beside an image of 256 tokens"):
            InstructionCollator(recorded_processors.small_processor("lisa"), 200, 256)


def test_a_text_that_holds_a_slot_itself_is_refused_with_its_image():
    collator = InstructionCollator(recorded_processors.small_processor("lisa"))
    with pytest.raises(DataFileError, match=r"data, image.jpg: the conversation .* holds 1 \[SEG\] and has 0 masks"):
        collator([item([["<image>\nWhat is [SEG]?", "A token."]], [0])])


class TestOverlaps:
    """LISA's mask of two overlapping parts has 2 where they overlap."""

    MASKS = np.pad(np.full((1, 5, 6), 2, dtype=np.uint8), ((0, 0), (0, 15), (0, 24)), constant_values=1)

    def loss(self, **options):
        model, processor = tiny_system("lisa")
        batch = InstructionCollator(processor, **options)([item([["<image>\nWhere?", "[SEG]."]], [1], self.MASKS)])
        output = model.train()(**batch)
        logits = upsample_masks(
            output.pred_masks[0], tiny.SAM_SIDE, batch["reshaped_input_sizes"][0].tolist(), (20, 30)
        )
        return batch, logits[0], output.losses["mask_bce_loss"] / model.config.bce_loss_weight

    def test_two_is_the_target_as_in_the_original(self):
        batch, logits, loss = self.loss()
        assert batch["mask_labels"][0].unique().tolist() == [1.0, 2.0]
        target = torch.from_numpy(self.MASKS[0]).float()
        # binary cross entropy with logits: softplus(x) - x * target
        expected = (torch.nn.functional.softplus(logits) - logits * target).mean()
        torch.testing.assert_close(loss, expected)

    def test_clipped(self):
        batch, logits, loss = self.loss(clip_overlaps=True)
        assert batch["mask_labels"][0].unique().tolist() == [1.0]
        torch.testing.assert_close(loss, torch.nn.functional.softplus(-logits).mean())

    def test_a_model_that_is_not_told_refuses_it(self):
        model, processor = tiny_system("lisa")
        batch = InstructionCollator(processor)([item([["<image>\nWhere?", "[SEG]."]], [1], self.MASKS)])
        assert batch.pop("highest_mask_label") == 2.0
        with pytest.raises(ValueError, match=r"they must lie in \[0, 1\]"):
            model(**batch)


class TestRowsWithoutAnImage:
    @pytest.fixture(scope="class")
    def system(self):
        return tiny_system("lisa")

    def test_they_learn_what_they_learn_alone(self, system):
        model, processor = system
        collator = InstructionCollator(processor)
        talk, drawing = item([["Hi", "Hello"]], [0]), item([["<image>\nWhere?", "[SEG]."]], [1])
        with torch.no_grad():
            both = model(**collator([talk, drawing]))
            alone = [model(**collator([one])) for one in (talk, drawing)]
        assert [len(masks) for masks in both.pred_masks] == [0, 1]
        torch.testing.assert_close(both.pred_masks[1], alone[1].pred_masks[0])
        for row, single in enumerate(alone):
            length = single.logits.shape[1]
            torch.testing.assert_close(both.logits[row, :length], single.logits[0])
        assert alone[0].losses["mask_bce_loss"] == 0

    def test_a_slot_has_nothing_to_be_drawn_in(self, system):
        model, processor = system
        batch = InstructionCollator(processor)([item([["Where?", "[SEG]."]], [1])])
        with pytest.raises(ValueError, match="A row without an image holds a"):
            model(**batch)

    def test_nothing_to_predict_is_no_loss(self, system):
        model, processor = system
        batch = InstructionCollator(processor)([item([["<image>\nWhere?", "[SEG]."]], [1])])
        batch["labels"].fill_(-100)
        assert model(**batch).losses["ce_loss"] == 0


def test_another_chat_template_has_the_image_where_the_user_shows_it():
    processor = recorded_processors.small_processor(
        "lisa",
        chat_template=(
            "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}"
            "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        ),
        template=None,
    )
    collator = InstructionCollator(processor)
    talk = [" And? ", "So.", "Look <image>\nhere", "I did: <image>"]
    assert collator.write(talk) == "<user> And? </s><assistant>So.</s><user><image>Look here</s><assistant>I did: </s>"
    assert collator.write(["a", "b: <image>\n"]) == "<user><image>a</s><assistant>b: </s>"
    batch = collator([item([talk], [0])])
    learnt = processor.tokenizer.decode([label for label in batch["labels"][0].tolist() if label != -100])
    assert learnt.replace(" ", "") == "So.</s>Idid:</s>"


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_loss_falls_and_every_part_of_it_is_in_the_logs(system, tmp_path):
    repo = write_tiny_repo(system, tmp_path / "repo")
    arguments = {"save_strategy": "steps", "save_steps": 20, "learning_rate": 5e-3}
    recipe = load_recipe(write_mixture_recipe(repo, tmp_path / "recipe.yaml", arguments=arguments))
    run_recipe(recipe, tmp_path / "out")
    state = json.loads((tmp_path / "out" / "checkpoint-20" / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    assert len(logs) == 20
    for entry in logs:
        parts = entry["ce_loss"] + entry["mask_bce_loss"] + entry["mask_dice_loss"]
        assert entry["loss"] == pytest.approx(parts, abs=1e-3)
    losses = [entry["ce_loss"] for entry in logs]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
