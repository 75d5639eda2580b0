"""Coordinates of an answer become masks: against transformers' own segmenters, in batches, with caches, and errors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamImageProcessorPil, SamModel, SamProcessor

from reasonseg.modeling.configuration_coordinates import CoordinatesConfig
from reasonseg.modeling.modeling_coordinates import CoordinatesForReasoningSegmentation
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from tests.support import tiny


TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
# (height, width) of both images, and what Qwen's vision tower sees of them: patches of 14 pixels, merged 2 x 2.
SIZES = [(40, 50), (64, 64)]
GRIDS = [(4, 6), (2, 8)]
TILES = [3, 1]


def found(box=None, points=(), labels=None) -> SimpleNamespace:
    return SimpleNamespace(box_xyxy=box, points_xy=points, point_labels=labels or [1] * len(points))


def answer(*objects) -> SimpleNamespace:
    return SimpleNamespace(objects=list(objects))


# Every kind of prompt: a box, points of both labels, both together; outside of the image, too.
OBJECTS = [
    found((3.0, 4.5, 30.0, 33.0)),
    found(points=[(10.0, 12.0)]),
    found((3.0, 4.0, 30.0, 33.0), [(10.0, 12.0), (20.0, 25.0)]),
    found((12.0, 2.0, 45.0, 38.0), [(20.0, 20.0)], [0]),
    found(points=[(5.0, 5.0), (40.0, 30.0), (-3.0, 60.0)], labels=[1, 0, 1]),
    found((0.0, 0.0, 25.0, 20.0)),
]


def read(ids: list[int], row: int) -> SimpleNamespace:
    """One object per two tokens, so that other tokens give other masks."""
    pairs = zip(ids[::2], ids[1::2], strict=False)
    return answer(*(found((x / 4, y / 4, x / 4 + 20, y / 4 + 15), [(x / 2, y / 2)]) for x, y in pairs))


def qwen_views(rows: list[int]) -> tuple[dict, list[int]]:
    """Images of different grids: 6 and 4 tokens."""
    views = [torch.randn(h * w, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(h * w)) for h, w in GRIDS]
    grids = torch.tensor([[1, *GRIDS[row]] for row in rows])
    counts = [GRIDS[row][0] * GRIDS[row][1] // 4 for row in rows]
    return {"pixel_values": torch.cat([views[row] for row in rows]), "image_grid_thw": grids}, counts


def internvl_views(rows: list[int]) -> tuple[dict, list[int]]:
    """Images of three tiles and of one, 4 tokens each."""
    views = [torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(count)) for count in TILES]
    counts = torch.tensor([TILES[row] for row in rows])
    return {"pixel_values": torch.cat([views[row] for row in rows]), "tile_counts": counts}, [
        4 * TILES[row] for row in rows
    ]


def smolvlm_views(rows: list[int]) -> tuple[dict, list[int]]:
    views = torch.randn(2, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": views[rows]}, [4] * len(rows)


PAIRS = {
    "qwen2_5_vl and sam2": (tiny.qwen2_5_vl_config, tiny.sam2_config, qwen_views),
    "qwen3_vl and sam": (tiny.qwen3_vl_config, tiny.sam_config, qwen_views),
    "internvl and sam_hq": (tiny.internvl_config, tiny.sam_hq_config, internvl_views),
    "smolvlm and sam3_tracker": (tiny.smolvlm_config, tiny.sam3_tracker_config, smolvlm_views),
}
LENGTHS = [5, 11]


def build(vlm_config, segmenter_config) -> CoordinatesForReasoningSegmentation:
    config = CoordinatesConfig(vlm_config=vlm_config, segmenter_config=segmenter_config)
    model = tiny.randomize(CoordinatesForReasoningSegmentation(config), std=0.3, seed=1)
    model.generation_config.pad_token_id = tiny.PAD
    if segmenter_config.model_type == "sam3_tracker":
        # Transformers' own forward adds it to a fourth level of the pyramid, which nothing reads (5.24).
        model.segmenter.no_memory_embedding.data.zero_()
    return model


def inputs_of(model, make_views, rows: list[int]) -> dict:
    """Left-padded prompts of different lengths about images of different sizes."""
    views, counts = make_views(rows)
    parts = [tiny.prompts([LENGTHS[row]], seed=row, image_tokens=n) for row, n in zip(rows, counts, strict=True)]
    width = max(part["input_ids"].shape[1] for part in parts)
    batch = {
        name: torch.cat([torch.nn.functional.pad(part[name], (width - part[name].shape[1], 0)) for part in parts])
        for name in ("input_ids", "attention_mask")
    }
    if model.vlm.config.model_type.startswith("qwen"):
        batch["mm_token_type_ids"] = (batch["input_ids"] == tiny.IMAGE).long()
    squashes = model.segmenter.config.model_type in ("sam2", "sam3_tracker")
    resized = [(tiny.SAM_SIDE, tiny.SAM_SIDE) if squashes else ((51, 64), (64, 64))[row] for row in rows]
    sam = torch.randn(2, 3, tiny.SAM_SIDE, tiny.SAM_SIDE, generator=torch.Generator().manual_seed(7))
    sizes = {
        "original_sizes": torch.tensor([SIZES[row] for row in rows]),
        "reshaped_input_sizes": torch.tensor(resized),
    }
    return {**batch, **views, **sizes, "sam_pixel_values": sam[rows]}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    vlm_config, segmenter_config, make_views = PAIRS[request.param]
    return build(vlm_config(), segmenter_config()), make_views


@pytest.fixture(scope="module")
def qwen():
    return build(tiny.qwen3_vl_config(), tiny.sam_config()), qwen_views


def given(model, inputs: dict) -> dict:
    """The same inputs with an answer of two tokens."""
    new = torch.tensor([[9, 12]] * len(inputs["input_ids"]))
    longer = {"input_ids": new, "attention_mask": torch.ones_like(new), "mm_token_type_ids": torch.zeros_like(new)}
    length = inputs["input_ids"].shape[1]
    answered = {name: torch.cat([inputs[name], longer[name]], 1) for name in longer if name in inputs}
    return {**inputs, **answered, "answer_ranges": torch.tensor([[length, length + 2]] * len(new))}


@torch.no_grad()
def test_masks_are_those_of_the_stock_segmenter(pair):
    """The model's own forward, one prompt at a time; the best of three by its predicted IoU."""
    model, make_views = pair
    inputs = inputs_of(model, make_views, [0, 1])
    output = model(**given(model, inputs), coordinate_reader=lambda ids, row: answer(*OBJECTS[3 * row :][:4]))
    assert [len(masks) for masks in output.pred_masks] == [4, 3]
    assert output.logits.shape[:2] == (2, inputs["input_ids"].shape[1] + 2)
    for row in range(2):
        height, width = SIZES[row]
        resized_height, resized_width = inputs["reshaped_input_sizes"][row].tolist()
        scale = (resized_width / width, resized_height / height)
        for index, one in enumerate(OBJECTS[3 * row :][:4]):
            prompts = {}
            if one.points_xy:
                prompts["input_points"] = torch.tensor([[[[x * scale[0], y * scale[1]] for x, y in one.points_xy]]])
                prompts["input_labels"] = torch.tensor([[one.point_labels]])
            if one.box_xyxy is not None:
                prompts["input_boxes"] = torch.tensor([[[e * scale[i % 2] for i, e in enumerate(one.box_xyxy)]]])
            stock = model.segmenter(
                pixel_values=inputs["sam_pixel_values"][row : row + 1], multimask_output=True, **prompts
            )
            scores, masks = stock.iou_scores[0, 0], stock.pred_masks[0, 0]
            torch.testing.assert_close(output.candidate_scores[row][index], scores, **TOLERANCE)
            torch.testing.assert_close(output.candidate_masks[row][index], masks, **TOLERANCE)
            torch.testing.assert_close(output.pred_masks[row][index], masks[scores.argmax()], **TOLERANCE)
            torch.testing.assert_close(output.mask_scores[row][index], scores.max(), **TOLERANCE)


@torch.no_grad()
def test_masks_are_those_of_the_stock_processor_and_model():
    """From the picture to the mask at its size, with transformers' own SamProcessor doing everything else."""
    model = build(tiny.llava_config(), tiny.sam_config())
    stock = SamModel(model.segmenter.config).eval()
    stock.load_state_dict(model.segmenter.state_dict())
    side = tiny.SAM_SIDE
    view = SamImageProcessorPil(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": side // 4},
        mask_pad_size={"height": side // 4, "width": side // 4},
    )
    processor = SamProcessor(view)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    ours = SegmenterImageProcessor(size={"longest_edge": side})(image, return_tensors="pt")
    cache = model.encode_image(pixel_values=tiny.images(1)["pixel_values"], **ours)
    output = model.segment_answers([answer(*OBJECTS)], cache)
    for index, one in enumerate(OBJECTS):
        prompts = {} if one.box_xyxy is None else {"input_boxes": [[list(one.box_xyxy)]]}
        if one.points_xy:
            prompts |= {"input_points": [[list(map(list, one.points_xy))]], "input_labels": [[one.point_labels]]}
        inputs = processor(image, return_tensors="pt", **prompts)
        inputs = {name: v.float() if v.is_floating_point() else v for name, v in inputs.items()}
        torch.testing.assert_close(inputs["pixel_values"], ours["sam_pixel_values"], **TOLERANCE)
        sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes")]
        theirs = stock(**inputs, multimask_output=True)
        torch.testing.assert_close(output.candidate_masks[0][index], theirs.pred_masks[0, 0], **TOLERANCE)
        masks = view.post_process_masks(theirs.pred_masks, *sizes, pad_size={"height": side, "width": side})
        assert masks[0].shape[-2:] == (40, 50)


def test_a_row_does_not_depend_on_its_batch(pair):
    """Left padding, positions and image grids: StAR's authors warn that their answers change with the batch size."""
    model, make_views = pair
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "coordinate_reader": read}
    together = inputs_of(model, make_views, [0, 1])
    start = together["input_ids"].shape[1]
    batch = model.generate_with_masks(**together, **options)
    shared = model.generate_with_masks(**together, **options, share_prefixes=False)
    assert torch.equal(batch.sequences, shared.sequences)
    assert not torch.equal(batch.sequences[0, start:], batch.sequences[1, start:])
    for row in range(2):
        inputs = inputs_of(model, make_views, [row])
        alone = model.generate_with_masks(**inputs, **options)
        assert torch.equal(alone.sequences[0, inputs["input_ids"].shape[1] :], batch.sequences[row, start:])
        torch.testing.assert_close(alone.pred_masks[0], batch.pred_masks[row], **TOLERANCE)
        torch.testing.assert_close(alone.mask_scores[0], batch.mask_scores[row], **TOLERANCE)
        assert len(batch.answers[row].objects) == len(batch.pred_masks[row]) == 4


def test_rows_share_an_image_and_later_calls_its_encoding(pair):
    model, make_views = pair
    first = inputs_of(model, make_views, [0])
    texts = {name: first.pop(name) for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in first}
    doubled = {name: value.repeat(2, 1) for name, value in texts.items()}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "coordinate_reader": read}
    alone = model.generate_with_masks(**texts, **first, **options)
    cache = model.encode_image(**first)
    both = model.generate_with_masks(**doubled, image_cache=cache, image_index=torch.tensor([0, 0]), **options)
    again = model.generate_with_masks(**texts, image_cache=cache, **options)
    for row, output in ((0, both), (1, both), (0, again)):
        assert torch.equal(output.sequences[row], alone.sequences[0])
        torch.testing.assert_close(output.pred_masks[row], alone.pred_masks[0], **TOLERANCE)
    drawn = model.segment_answers(alone.answers, cache)
    torch.testing.assert_close(drawn.pred_masks[0], alone.pred_masks[0], **TOLERANCE)


def test_points_and_boxes_are_drawn_under_autocast(pair):
    """Every candidate of every prompt: which one is best is a matter of rounding where two score alike."""
    model, make_views = pair
    cache = model.encode_image(**inputs_of(model, make_views, [0]))
    drawn = model.segment_answers([answer(*OBJECTS)], cache)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.segment_answers([answer(*OBJECTS)], cache)
    same = (rounded.candidate_masks[0] > 0) == (drawn.candidate_masks[0] > 0)
    assert same.shape[:2] == (6, model.segmenter.config.mask_decoder_config.num_multimask_outputs)
    assert same.float().mean() > 0.95
    torch.testing.assert_close(rounded.candidate_scores[0], drawn.candidate_scores[0], atol=2**-5, rtol=2**-5)
    for output in (drawn, rounded):
        for index, scores in enumerate(output.candidate_scores[0].tolist()):
            best = max(range(len(scores)), key=lambda number: (scores[number], number))  # of equal ones the last
            assert torch.equal(output.pred_masks[0][index], output.candidate_masks[0][index, best])


def test_a_prompt_that_awaits_its_answer_is_answered(qwen):
    """What a processor makes of phrases: there are no coordinates to give."""
    model, make_views = qwen
    inputs = inputs_of(model, make_views, [0, 1])
    model.generation_config.max_new_tokens = 6
    written = model.generate_with_masks(**inputs, do_sample=False, coordinate_reader=read)
    output = model(**inputs, coordinate_reader=read)
    assert torch.equal(output.sequences, written.sequences)
    assert output.logits is None
    for row in range(2):
        torch.testing.assert_close(output.pred_masks[row], written.pred_masks[row], **TOLERANCE)
    assert isinstance(model(**inputs, coordinate_reader=read, return_dict=False), tuple)
    # Without a reader, and with labels, it is a language model.
    assert model(**inputs).pred_masks is None
    loss = model(**inputs, labels=inputs["input_ids"], coordinate_reader=read).loss
    stock = {name: value for name, value in inputs.items() if "si" not in name.split("_")[-1] and "sam" not in name}
    expected = model.vlm(**stock, labels=inputs["input_ids"]).loss
    torch.testing.assert_close(loss, expected)
    assert torch.equal(model.generate(**inputs, coordinate_reader=read, do_sample=False), written.sequences)


def test_the_reader_sees_the_answer_alone(qwen):
    model, make_views = qwen
    inputs = inputs_of(model, make_views, [0, 1])
    start = inputs["input_ids"].shape[1]
    free = model.generate_with_masks(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert free.answers is None
    stop = int(free.sequences[0, start + 2])
    seen = []

    def note(ids, row):
        seen.append((row, ids))
        return answer()

    options = {"max_new_tokens": 6, "do_sample": False, "coordinate_reader": note}
    model.generate_with_masks(**inputs, **options, eos_token_id=stop)
    first = free.sequences[0, start:].tolist()
    assert seen[0] == (0, first[: first.index(stop) + 1])
    seen.clear()
    several = model.generate_with_masks(**inputs, **options, num_beams=2, num_return_sequences=2, eos_token_id=None)
    assert [row for row, _ in seen] == [0, 0, 1, 1]
    assert len(several.answers) == len(several.pred_masks) == 4


def test_nothing_found_costs_no_segmenter(qwen, monkeypatch):
    model, make_views = qwen
    monkeypatch.setattr(model.segmenter.vision_encoder, "forward", lambda *_: pytest.fail("it was run"))
    inputs = inputs_of(model, make_views, [0, 1])
    output = model.generate_with_masks(**inputs, max_new_tokens=2, coordinate_reader=lambda ids, row: answer())
    assert [tuple(masks.shape) for masks in output.pred_masks] == [(0, 16, 16)] * 2
    assert [len(scores) for scores in output.mask_scores] == [0, 0]


def test_low_scores_are_rejected_on_request(qwen):
    model, make_views = qwen
    inputs = inputs_of(model, make_views, [0])
    options = {"max_new_tokens": 2, "coordinate_reader": lambda ids, row: answer(*OBJECTS)}
    scores = model.generate_with_masks(**inputs, **options).mask_scores[0]
    between = scores.sort().values[2:4].mean().item()
    output = model.generate_with_masks(**inputs, **options, reject_threshold=between)
    assert torch.equal(output.rejected[0], scores < between)
    assert output.rejected[0].sum() == 3
    assert output.slot_probs[0].tolist() == [1.0] * 6


def test_streaming_ends_with_the_objects(qwen):
    model, make_views = qwen
    inputs = inputs_of(model, make_views, [0])
    options = {"max_new_tokens": 6, "do_sample": False, "coordinate_reader": read}
    *tokens, last = model.stream_with_masks(**inputs, **options)
    expected = model.generate_with_masks(**inputs, **options)
    written = [token for step in tokens for token in step.token_ids]
    assert written == expected.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    torch.testing.assert_close(last.output.pred_masks[0], expected.pred_masks[0], **TOLERANCE)


@pytest.mark.parametrize(
    ("one", "message"),
    [(found(), "neither a box nor a point"), (found(points=[(1, 2), (3, 4)], labels=[1]), "2 points and 1 labels")],
)
def test_objects_without_prompts_are_refused(qwen, one, message):
    model, make_views = qwen
    inputs = inputs_of(model, make_views, [0])
    with pytest.raises(ValueError, match=message):
        model.generate_with_masks(**inputs, max_new_tokens=2, coordinate_reader=lambda ids, row: answer(one))


def test_what_is_missing_is_said(qwen):
    model, make_views = qwen
    inputs = inputs_of(model, make_views, [0])
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 2, "coordinate_reader": lambda ids, row: answer(OBJECTS[0])}
    with pytest.raises(ValueError, match="An image is needed to draw in"):
        model.generate_with_masks(**texts, **options)
    for names, message in (
        (("original_sizes",), "Pointing needs `original_sizes`"),
        (("sam_pixel_values",), "the segmenter's view of their images"),
    ):
        partial = {name: value for name, value in inputs.items() if name not in names}
        with pytest.raises(ValueError, match=message):
            model.generate_with_masks(**partial, **options)


def test_saving_and_loading(qwen, tmp_path):
    model, make_views = qwen
    model.save_pretrained(tmp_path)
    loaded = CoordinatesForReasoningSegmentation.from_pretrained(tmp_path)
    inputs = inputs_of(model, make_views, [0])
    options = {"max_new_tokens": 4, "do_sample": False, "coordinate_reader": read}
    first, second = (one.generate_with_masks(**inputs, **options) for one in (model, loaded))
    assert torch.equal(first.sequences, second.sequences)
    assert torch.equal(first.pred_masks[0], second.pred_masks[0])
