"""Any vision-language model with any segmenter: maps against the model's own attentions, decoding, prompts, errors."""

import pytest
import torch
from transformers import CLIPVisionConfig, CompileConfig, GenerationConfig, LlavaConfig, MistralConfig

from reasonseg.modeling.attention_maps import AttentionMapCollector, ImageColumns, reduce_attentions
from reasonseg.modeling.configuration_attend_and_segment import AttendAndSegmentConfig
from reasonseg.modeling.configuration_gsva import GsvaConfig
from reasonseg.modeling.configuration_lisa import LisaConfig
from reasonseg.modeling.configuration_reasoning_segmentation import ReasoningSegmentationConfig
from reasonseg.modeling.modeling_attend_and_segment import AttendAndSegmentForReasoningSegmentation
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from reasonseg.modeling.modeling_reasoning_segmentation import ComposedForReasoningSegmentation
from reasonseg.modeling.phrase_drawing import TokenGroup
from tests.support import tiny


GROUPS = [TokenGroup((0, 1)), TokenGroup((2,))]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def find_two(token_ids: list[int], row: int) -> list[TokenGroup]:
    return [group for group in GROUPS if max(group.tokens) < len(token_ids)]


def llava_inputs(count: int) -> tuple[dict, int, dict]:
    return {"pixel_values": tiny.images(count)["pixel_values"]}, 4, {}


def llava_next_inputs(count: int) -> tuple[dict, int, dict]:
    """28 x 56 pixels: a base of 2 x 2, then two tiles of 2 x 2 side by side with a newline behind each row."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 3, 28, 28, generator=generator)
    views = {"pixel_values": pixels, "image_sizes": torch.tensor([[28, 56]] * count)}
    return views, 14, grid(count, 2, 4, [4, 5, 6, 7, 9, 10, 11, 12])


def qwen_inputs(count: int) -> tuple[dict, int, dict]:
    """56 x 84 pixels: 4 x 6 patches, merged 2 x 2 to a grid of 2 x 3."""
    generator = torch.Generator().manual_seed(0)
    views = {
        "pixel_values": torch.randn(count * 24, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 6]] * count),
    }
    return views, 6, grid(count, 2, 3, range(6))


def internvl_inputs(count: int) -> tuple[dict, int, dict]:
    """Two tiles side by side and a thumbnail, 2 x 2 tokens each."""
    generator = torch.Generator().manual_seed(0)
    grids = grid(count, 2, 4, [0, 1, 4, 5, 2, 3, 6, 7]) | {"tile_counts": torch.tensor([3] * count)}
    return {"pixel_values": torch.randn(3 * count, 3, 56, 56, generator=generator)}, 12, grids


def grid(count: int, rows: int, columns: int, tokens) -> dict:
    return {
        "grid_sizes": torch.tensor([[rows, columns]] * count),
        "grid_boxes": torch.tensor([[0.0, 0.0, 40.0, 30.0]] * count),
        "grid_tokens": torch.tensor([list(tokens)] * count),
    }


PAIRS = {
    "llava and sam": (tiny.llava_config, tiny.sam_config, llava_inputs),
    "llava and sam_hq": (tiny.llava_config, tiny.sam_hq_config, llava_inputs),
    "llava_next and sam2": (tiny.llava_next_config, tiny.sam2_config, llava_next_inputs),
    "qwen2_5_vl and sam2": (tiny.qwen2_5_vl_config, tiny.sam2_config, qwen_inputs),
    "internvl and sam": (tiny.internvl_config, tiny.sam_config, internvl_inputs),
}


def build(vlm_config=None, segmenter_config=None, **fields) -> AttendAndSegmentForReasoningSegmentation:
    config = AttendAndSegmentConfig(
        vlm_config=vlm_config or tiny.llava_config(),
        segmenter_config=segmenter_config or tiny.sam_config(),
        **{"attention_temperature": 0.05, **fields},
    )
    return tiny.randomize(AttendAndSegmentForReasoningSegmentation(config), seed=3)


def inputs_of(make_inputs, lengths: list[int], model) -> tuple[dict, dict]:
    views, image_tokens, grids = make_inputs(len(lengths))
    batch = tiny.prompts(lengths, image_tokens=image_tokens)
    if model.vlm.config.model_type == "qwen2_5_vl":
        batch["mm_token_type_ids"] = (batch["input_ids"] == tiny.IMAGE).long()
    sizes = {name: value for name, value in tiny.images(len(lengths)).items() if name != "pixel_values"}
    return batch, {**views, **sizes, **grids}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    vlm_config, segmenter_config, make_inputs = PAIRS[request.param]
    model = build(vlm_config(), segmenter_config())
    batch, images = inputs_of(make_inputs, [6, 9], model)
    return model, batch, images


@pytest.fixture(scope="module")
def llava():
    model = build()
    batch, images = inputs_of(llava_inputs, [6, 9], model)
    return model, batch, images


def answered(batch: dict, sequences: torch.Tensor) -> dict:
    """The prompts with their generated answers."""
    start = batch["input_ids"].shape[1]
    new = sequences[:, start:]
    mask = torch.cat([batch["attention_mask"], torch.ones_like(new)], dim=1)
    inputs = {"input_ids": sequences, "attention_mask": mask}
    if "mm_token_type_ids" in batch:
        inputs["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
    return inputs


def own_maps(model, inputs: dict, images: dict, start: int) -> list[torch.Tensor]:
    """What the model's own attentions say: second-last head, mean over layers, the cells of the grid."""
    views = {
        name: value for name, value in images.items() if name in ("pixel_values", "image_sizes", "image_grid_thw")
    }
    attentions = model.vlm(**inputs, **views, output_attentions=True).attentions
    heads = torch.stack([layer[:, -2] for layer in attentions]).mean(0)
    maps = []
    for row, ids in enumerate(inputs["input_ids"]):
        columns = (ids == tiny.IMAGE).nonzero()[:, 0]
        cells = images["grid_tokens"][row] if "grid_tokens" in images else torch.arange(4)
        rows, width = images["grid_sizes"][row].tolist() if "grid_sizes" in images else (2, 2)
        maps.append(heads[row, start - 1 : -1][:, columns[cells]].reshape(-1, rows, width))
    return maps


@torch.no_grad()
def test_maps_are_the_models_attentions(pair):
    model, batch, images = pair
    start = batch["input_ids"].shape[1]
    output = model.generate_with_masks(
        **batch, **images, max_new_tokens=5, do_sample=False, phrase_finder=find_two, eos_token_id=None
    )
    inputs = answered(batch, output.sequences)
    for found, expected in zip(output.attention_maps, own_maps(model, inputs, images, start), strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)

    ranges = torch.tensor([[start, output.sequences.shape[1]]] * 2)
    forced = model(**inputs, **images, answer_ranges=ranges, phrase_finder=find_two)
    for name in ("attention_maps", "phrase_maps", "pred_masks", "candidate_scores"):
        for found, expected in zip(forced[name], output[name], strict=True):
            torch.testing.assert_close(found, expected, **TOLERANCE)
    assert [len(masks) for masks in output.pred_masks] == [2, 2]
    assert output.candidate_masks[0].shape[:2] == (2, 3)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(pair):
    model, batch, images = pair
    together = model.generate_with_masks(**batch, **images, max_new_tokens=4, do_sample=False, phrase_finder=find_two)
    keep = batch["attention_mask"][0].bool()
    alone = {name: value[:1, keep] for name, value in batch.items()}
    first = {}
    for name, value in images.items():
        per_image = len(value) // 2
        first[name] = value[:per_image]
    single = model.generate_with_masks(**alone, **first, max_new_tokens=4, do_sample=False, phrase_finder=find_two)
    count = len(single.attention_maps[0])
    torch.testing.assert_close(together.attention_maps[0][:count], single.attention_maps[0], **TOLERANCE)
    torch.testing.assert_close(together.pred_masks[0], single.pred_masks[0], **TOLERANCE)


@pytest.mark.parametrize("prompt", ["point", "box", "mask", "mask_and_box"])
def test_every_kind_of_prompt(pair, prompt):
    model, batch, images = pair
    output = model.generate_with_masks(
        **batch, **images, max_new_tokens=4, do_sample=False, phrase_finder=find_two, prompt=prompt
    )
    assert (output.points is not None) == (prompt == "point")
    assert (output.boxes is not None) == ("box" in prompt)
    assert all(torch.isfinite(masks).all() for masks in output.pred_masks)


@torch.no_grad()
def test_an_empty_box_finds_nothing(llava):
    """In the first row nothing rises above the mean map; in the second the first of two phrases stands out."""
    model, _, images = llava
    cache = model.encode_image(**images)
    flat, steep = torch.full((3, 2, 2), 0.25), torch.full((3, 2, 2), 0.1)
    steep[0, 0, 0] = 0.7
    arguments = [flat, steep], [[(0,)], [(0,), (1,)]], cache
    output = model.segment_maps(*arguments, prompt="box")
    assert [flags.tolist() for flags in output.rejected] == [[True], [False, True]]
    assert [chances.tolist() for chances in output.slot_probs] == [[0.0], [1.0, 0.0]]
    assert output.boxes[0].tolist() == [[0, 0, 0, 0]]
    assert output.boxes[1][0, 2:].gt(output.boxes[1][0, :2]).all()
    assert [scores[-1].item() for scores in output.mask_scores] == [0, 0]
    assert all(masks.shape[1] == 3 and (masks[-1] < 0).all() for masks in output.candidate_masks)

    # What is drawn is drawn as if nothing else had been asked for.
    alone = model.segment_maps([steep], [[(0,)]], cache, torch.tensor([1]), prompt="box")
    torch.testing.assert_close(output.candidate_masks[1][:1], alone.candidate_masks[0], **TOLERANCE)
    torch.testing.assert_close(output.candidate_scores[1][:1], alone.candidate_scores[0], **TOLERANCE)
    nowhere = model.segment_maps([flat], [[(0,)]], cache, torch.tensor([0]), prompt="box", mask_choice="best")
    assert nowhere.pred_masks[0].shape == (1, *output.pred_masks[0].shape[1:])
    assert nowhere.rejected[0].tolist() == [True]

    # Beside the soft mask the released code gives SAM the empty box, too.
    both = model.segment_maps(*arguments, prompt="mask_and_box")
    assert both.boxes[0].tolist() == [[0, 0, 0, 0]]
    assert not torch.cat(both.rejected).any()
    assert torch.cat(both.mask_scores).all()


def test_what_is_nowhere_stays_rejected(llava):
    model, batch, images = llava
    options = {"max_new_tokens": 4, "do_sample": False, "phrase_finder": find_two, "prompt": "box"}
    lenient = model.generate_with_masks(**batch, **images, **options, attention_temperature=1.0, reject_threshold=-1e6)
    assert all(len(flags) and flags.all() for flags in lenient.rejected)
    scores = torch.cat(model.generate_with_masks(**batch, **images, **options, box_threshold=1e-3).mask_scores)
    strict = model.generate_with_masks(
        **batch, **images, **options, box_threshold=1e-3, reject_threshold=scores.max().item()
    )
    assert torch.equal(torch.cat(strict.rejected), scores < scores.max())


def test_which_candidate_is_the_mask(llava):
    model, batch, images = llava
    options = {"max_new_tokens": 4, "do_sample": False, "phrase_finder": find_two}
    third = model.generate_with_masks(**batch, **images, **options)
    best = model.generate_with_masks(**batch, **images, **options, mask_choice="best")
    for row in range(2):
        assert torch.equal(third.pred_masks[row], third.candidate_masks[row][:, 2])
        assert torch.equal(best.mask_scores[row], best.candidate_scores[row].max(dim=1).values)


@torch.no_grad()
def test_beams_and_several_sequences(llava):
    model, batch, images = llava
    start = batch["input_ids"].shape[1]
    output = model.generate_with_masks(
        **batch,
        **images,
        max_new_tokens=5,
        num_beams=3,
        num_return_sequences=2,
        do_sample=False,
        phrase_finder=find_two,
        eos_token_id=None,
    )
    assert len(output.sequences) == len(output.attention_maps) == len(output.pred_masks) == 4
    doubled = {name: value.repeat_interleave(2, dim=0) for name, value in batch.items()}
    images = {name: value.repeat_interleave(2, dim=0) for name, value in images.items()}
    expected = own_maps(model, answered(doubled, output.sequences), images, start)
    for found, own in zip(output.attention_maps, expected, strict=True):
        torch.testing.assert_close(found, own, **TOLERANCE)


def test_steps_after_the_end_do_not_count(llava):
    model, batch, images = llava
    free = model.generate_with_masks(**batch, **images, max_new_tokens=6, do_sample=False, eos_token_id=None)
    start = batch["input_ids"].shape[1]
    ids = free.sequences[:, start:]
    stop = int(ids[0, 1])
    ended = model.generate_with_masks(
        **batch, **images, max_new_tokens=6, do_sample=False, eos_token_id=stop, pad_token_id=tiny.PAD
    )
    for row in range(2):
        places = (ids[row] == stop).nonzero()[:, 0].tolist()
        count = places[0] + 1 if places else 6
        torch.testing.assert_close(ended.attention_maps[row], free.attention_maps[row][:count], **TOLERANCE)
    assert len(ended.attention_maps[0]) <= 2


def test_a_padding_token_that_was_written(llava):
    model, batch, images = llava
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    free = model.generate_with_masks(**batch, **images, **options)
    again = model.generate_with_masks(**batch, **images, **options, pad_token_id=int(free.sequences[0, -1]))
    assert torch.equal(again.sequences, free.sequences)
    assert [len(maps) for maps in again.attention_maps] == [4, 4]


def test_a_given_configuration_is_filled_up(llava, monkeypatch):
    """What a configuration leaves open is the model's own, the end token among it."""
    model, batch, images = llava
    free = model.generate_with_masks(**batch, **images, max_new_tokens=6, do_sample=False, eos_token_id=None)
    stop = int(free.sequences[0, batch["input_ids"].shape[1] + 1])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop])
    monkeypatch.setattr(model.generation_config, "pad_token_id", None)
    given = GenerationConfig(max_new_tokens=6, do_sample=False)
    found = model.generate_with_masks(**batch, **images, generation_config=given)
    own = model.generate_with_masks(**batch, **images, max_new_tokens=6, do_sample=False)
    assert torch.equal(found.sequences, own.sequences)
    assert [len(maps) for maps in found.attention_maps] == [len(maps) for maps in own.attention_maps]
    assert len(found.attention_maps[0]) <= 2
    monkeypatch.setattr(model.generation_config, "prompt_lookup_num_tokens", 2)
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens predicts several tokens"):
        model.generate_with_masks(**batch, **images, generation_config=given)


def test_maps_kept_from_earlier(llava):
    model, batch, images = llava
    output = model.generate_with_masks(**batch, **images, max_new_tokens=4, do_sample=False, phrase_finder=find_two)
    groups = [[phrase.tokens for phrase in row] for row in output.phrases]
    again = model.segment_maps(output.attention_maps, groups, model.encode_image(**images))
    for row in range(2):
        assert torch.equal(again.pred_masks[row], output.pred_masks[row])
    # grids without boxes, as tiles alone are: the whole image
    tiled = model.encode_image(**images, tile_counts=torch.tensor([1, 1]))
    again = model.segment_maps(output.attention_maps, groups, tiled)
    assert torch.equal(again.pred_masks[0], output.pred_masks[0])
    with pytest.raises(ValueError, match=r"Unknown options \['colour'\]"):
        model.segment_maps(output.attention_maps, groups, model.encode_image(**images), colour="red")


def test_rows_that_share_a_image(llava):
    model, batch, images = llava
    one = {name: value[:1] for name, value in images.items()}
    options = {"max_new_tokens": 4, "do_sample": False, "phrase_finder": find_two}
    cache = model.encode_image(**one)
    shared = model.generate_with_masks(**batch, image_cache=cache, **options)
    both = {name: value[[0, 0]] for name, value in images.items()}
    apart = model.generate_with_masks(**batch, **both, **options)
    for row in range(2):
        torch.testing.assert_close(shared.pred_masks[row], apart.pred_masks[row], **TOLERANCE)


def test_memory_does_not_grow_with_layers_and_heads(llava):
    model, batch, images = llava
    columns = ImageColumns.find(batch["input_ids"], tiny.IMAGE, [torch.arange(4)] * 2)
    collector = AttentionMapCollector(model.vlm, columns, "paper", None)
    with reduce_attentions(collector):
        model.vlm.generate(
            **batch,
            pixel_values=images["pixel_values"],
            max_new_tokens=7,
            do_sample=False,
            eos_token_id=None,
            logits_processor=[collector],
        )
    assert collector.num_bytes == 7 * 2 * 4 * 4  # tokens, rows, cells, float32
    # an answer of 512 tokens of a model with 24 x 24 cells
    assert collector.num_bytes // (7 * 2 * 4) * 512 * 576 < 2_000_000


def test_text_alone(llava):
    model, batch, images = llava
    inputs = {**batch, **images, "phrase_finder": find_two, "answer_ranges": torch.zeros(2, 2)}
    sequences = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    output = model.generate_with_masks(**batch, **images, max_new_tokens=3, do_sample=False)
    assert torch.equal(sequences, output.sequences)
    assert output.pred_masks is None
    assert len(output.attention_maps) == 2


def test_saving(llava, tmp_path):
    model, batch, images = llava
    model.save_pretrained(tmp_path)
    again = AttendAndSegmentForReasoningSegmentation.from_pretrained(tmp_path).eval()
    assert again.vlm.get_decoder().config._attn_implementation == "eager"
    options = {"max_new_tokens": 3, "do_sample": False, "phrase_finder": find_two}
    found, expected = (one.generate_with_masks(**batch, **images, **options) for one in (again, model))
    for row in range(2):
        assert torch.equal(found.pred_masks[row], expected.pred_masks[row])


def test_labels_train_the_language_model(llava):
    model, batch, images = llava
    output = model(**batch, **images, labels=batch["input_ids"].masked_fill(batch["input_ids"] == tiny.IMAGE, -100))
    assert output.loss.requires_grad
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("kind", "architecture", "view"),
    [
        (AttendAndSegmentConfig, AttendAndSegmentForReasoningSegmentation, 336),
        (ReasoningSegmentationConfig, ComposedForReasoningSegmentation, 336),
        (LisaConfig, LisaForReasoningSegmentation, 224),
        (GsvaConfig, GsvaForReasoningSegmentation, 224),
    ],
)
def test_the_default_embeds_its_image_token(kind, architecture, view, tmp_path):
    """With its own vocabulary and ids; only widths and depths are smaller, those of the published model too large."""
    kind().save_pretrained(tmp_path)
    config = kind.from_pretrained(tmp_path)
    text, tower = config.get_text_config(), config.vlm_config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, tower.image_size) == (4096, 32, view)
    sizes = {name: value for name, value in tiny.TEXT.items() if name.startswith(("hidden", "inter", "num"))}
    for name, value in (sizes | {"head_dim": 8}).items():
        setattr(text, name, value)
    for name, value in tiny.CLIP.items():
        setattr(tower, name, value)
    config.segmenter_config = tiny.sam_config()
    model = tiny.randomize(architecture(config))
    embeddings = model.get_input_embeddings()
    assert config.image_token_id < embeddings.num_embeddings
    assert text.pad_token_id is None or text.pad_token_id < embeddings.num_embeddings

    batch = {"input_ids": torch.tensor([[1, *[config.image_token_id] * 4, 5, 6]])}
    logits = model(**batch, pixel_values=tiny.images(1)["pixel_values"]).logits
    assert logits.shape == (1, 7, embeddings.num_embeddings)
    assert torch.isfinite(logits).all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": [9]}, r"heads names \[9\], but a layer of .* has 4"),
            ({"heads": "some"}, "heads is 'some'; allowed are 'paper', 'mean' or a list"),
            ({"attention_layers": [5]}, r"attention_layers names \[5\], but .* has 2"),
            ({"prompt": "circle"}, "prompt is 'circle'; allowed are 'point'"),
            ({"mask_choice": "second"}, "mask_choice is 'second'; allowed are 'third', 'best'"),
            ({"attention_temperature": 0.0}, "give a positive number"),
            ({"box_threshold": 0.0}, "box_threshold is 0.0; give a probability above 0, at most 1"),
            ({"box_threshold": 1.5}, "box_threshold is 1.5; give a probability"),
            ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens predicts several tokens per pass"),
            ({"guidance_scale": 2.0}, "guidance_scale runs a second pass"),
            ({"grid_sizes": torch.tensor([[2, 2]] * 2)}, "grid_boxes, grid_tokens must be given together"),
            ({"grid_tokens": torch.tensor([[9, 1, 2, 3]] * 2), **{
                "grid_sizes": torch.tensor([[2, 2]] * 2), "grid_boxes": torch.zeros(2, 4)}},
             "has 4 image tokens, but its grid names token 9"),
        ],
    )  # fmt: skip
    def test_options(self, llava, options, message):
        model, batch, images = llava
        with pytest.raises(ValueError, match=message):
            model.generate_with_masks(**batch, **images, max_new_tokens=2, do_sample=False, **options)

    def test_no_image(self, llava):
        model, batch, _ = llava
        with pytest.raises(ValueError, match="An image is needed"):
            model.generate_with_masks(**batch, max_new_tokens=2)

    def test_no_square_grid(self, llava):
        model, _, images = llava
        with pytest.raises(ValueError, match=r"\[6, 6\] image tokens, which form no square grid"):
            model.generate_with_masks(**tiny.prompts([6, 9], image_tokens=6), **images, max_new_tokens=2)

    def test_no_segmenter_view(self, llava):
        model, batch, images = llava
        images = {name: value for name, value in images.items() if name != "sam_pixel_values"}
        with pytest.raises(ValueError, match="need the segmenter's view"):
            model.generate_with_masks(**batch, **images, max_new_tokens=2, phrase_finder=lambda ids, row: GROUPS[:1])

    def test_groups_outside_the_answer(self, llava):
        model, batch, images = llava
        with pytest.raises(ValueError, match="must name tokens of an answer"):
            model.generate_with_masks(
                **batch, **images, max_new_tokens=2, phrase_finder=lambda ids, row: [TokenGroup((7,))]
            )

    def test_tiles_that_do_not_add_up(self, llava):
        model, batch, images = llava
        with pytest.raises(ValueError, match=r"tile_counts \[2, 1\] must add up to the 2 pixel_values"):
            model.generate_with_masks(**batch, **images, tile_counts=torch.tensor([2, 1]), max_new_tokens=2)

    def test_tiles_of_other_images(self, llava):
        model, _, images = llava
        with pytest.raises(ValueError, match="1 images by tile_counts for the vision-language model and 2"):
            model.encode_image(**images, tile_counts=torch.tensor([2]))

    def test_answer_ranges(self, llava):
        model, batch, images = llava
        with pytest.raises(ValueError, match=r"answer_ranges .* must name one range per row"):
            model(**batch, **images, answer_ranges=torch.tensor([[0, 3]] * 2))

    def test_another_attention(self, llava):
        _, batch, images = llava
        model = build()
        model.vlm.get_decoder().config._attn_implementation = "sdpa"
        with pytest.raises(ValueError, match="return no weights"):
            model.generate_with_masks(**batch, **images, max_new_tokens=2)

    def test_a_sliding_window(self, llava):
        _, batch, images = llava
        text = MistralConfig(**tiny.TEXT, sliding_window=6, head_dim=8)
        vlm = LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**tiny.CLIP), image_token_index=tiny.IMAGE)
        with pytest.raises(ValueError, match=r"positions only \(a sliding window\), so that the image"):
            build(vlm).generate_with_masks(**batch, **images, max_new_tokens=4, eos_token_id=None)

    def test_config(self):
        with pytest.raises(ValueError, match="prompt is 'star'"):
            AttendAndSegmentConfig(prompt="star")
        with pytest.raises(ValueError, match="box_threshold is 75"):
            AttendAndSegmentConfig(box_threshold=75.0)
        assert AttendAndSegmentConfig(segmenter_config=tiny.sam_hq_config()).chosen_mask == "best"
        assert AttendAndSegmentConfig(segmenter_config=tiny.sam_config()).chosen_mask == "third"


def test_a_compiled_step_is_one_graph_and_gives_the_same_maps():
    model = build(tiny.llava_config(num_hidden_layers=1))
    batch, images = inputs_of(llava_inputs, [6], model)
    options = {**batch, **images, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": tiny.PAD}
    expected = model.generate_with_masks(**options)
    config = CompileConfig(backend="eager", fullgraph=True)  # raises where a graph breaks
    config._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    output = model.generate_with_masks(**options, cache_implementation="static", compile_config=config)
    assert torch.equal(output.sequences, expected.sequences)
    torch.testing.assert_close(output.attention_maps[0], expected.attention_maps[0], atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
