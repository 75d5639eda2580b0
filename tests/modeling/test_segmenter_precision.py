"""A segmenter whose image encoder computes in 16 bit, and one that encodes many images in little memory."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.modeling import composed_model, modeling_ivm
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.modeling.segmenters import segmenter_adapter
from reasonseg.tabletop.questions import tabletop_questions
from tests.support import tiny
from tests.support.recorded_cases import recorded_image


HALF = (torch.bfloat16, torch.float16)
FAMILIES = {
    "sam": tiny.sam_config,
    "sam_hq": tiny.sam_hq_config,
    "sam2": tiny.sam2_config,
    "sam3_tracker": tiny.sam3_tracker_config,
}
SCENES = 10


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    tiny.gsva_model(seed=2).save_pretrained(folder)
    return folder


def is_matrix(name: str) -> bool:
    return not any(part in name for part in ("norm", "pos_embed", "position", "rel_pos"))


def encoder_dtype(model) -> torch.dtype:
    return segmenter_adapter(model.segmenter).encoder_dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_matrices_of_the_encoder_are_in_16_bit(family, tmp_path):
    exact = tiny.gsva_model(segmenter_config=FAMILIES[family](), seed=2)
    exact.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, tiny.SAM_SIDE, tiny.SAM_SIDE, generator=torch.Generator().manual_seed(0))
    prompts = torch.randn(2, exact.seg_projector.linear_2.out_features, generator=torch.Generator().manual_seed(1))
    drawn = {}
    for dtype in (*HALF, torch.float32):
        model = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        segmenter = segmenter_adapter(model.segmenter)
        assert (model.dtype, segmenter.encoder_dtype, segmenter.dtype) == (dtype, dtype, torch.float32)
        for name, value in model.named_parameters():
            is_of_encoder = name.startswith("segmenter.vision_encoder.")
            if not name.startswith("vlm."):
                in_16_bit = is_of_encoder and (".mlp." in name or (dtype == torch.float16 and is_matrix(name)))
                assert value.dtype == (dtype if in_16_bit else torch.float32), name
        with torch.no_grad():
            features = segmenter.encode(pixels)
            assert {value.dtype for value in features.values()} == {torch.float32}
            drawn[dtype] = segmenter.decode(features, prompts)[0]
            expected = segmenter_adapter(exact.segmenter).encode(pixels)
        spread = {name: value.std() for name, value in expected.items()}
        bound = {torch.bfloat16: 0.05, torch.float16: 0.02, torch.float32: 0.0}[dtype]
        assert all((features[name] - expected[name]).abs().max() <= bound * spread[name] for name in expected)
    assert all((drawn[dtype] - drawn[torch.float32]).std() < 0.05 * drawn[torch.float32].std() for dtype in HALF)


@pytest.mark.parametrize("given", ["float32", torch.float32])
def test_the_encoder_s_type_can_be_chosen_and_is_saved(repo, tmp_path, given):
    model = AutoModel.from_pretrained(repo, dtype="bfloat16", segmenter_dtype=given)
    assert (model.dtype, encoder_dtype(model)) == (torch.bfloat16, torch.float32)
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", dtype="auto")
    assert (again.dtype, encoder_dtype(again), again.config.segmenter_dtype) == (*HALF[:1], torch.float32, "float32")
    assert encoder_dtype(AutoModel.from_pretrained(repo, segmenter_dtype="float16")) == torch.float16
    with pytest.raises(ValueError, match="segmenter_dtype is 'int8'; allowed are float32, bfloat16, float16"):
        AutoModel.from_pretrained(repo, segmenter_dtype="int8")
    with pytest.raises(ValueError, match="segmenter_dtype is 'int8'"):
        tiny.gsva_config(segmenter_dtype="int8")


def test_what_is_loaded_in_16_bit_is_saved_and_loaded_so(repo, tmp_path):
    half = AutoModel.from_pretrained(repo, dtype="bfloat16")
    half.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype="auto")
    pairs = zip(half.named_parameters(), again.named_parameters(), strict=True)
    assert all(a[1].dtype == b[1].dtype and torch.equal(a[1], b[1]) for a, b in pairs)
    assert encoder_dtype(again) == torch.bfloat16
    exact = AutoModel.from_pretrained(tmp_path, dtype="float32")
    assert {value.dtype for value in exact.parameters()} == {torch.float32}


def test_a_config_and_the_pipeline_take_it_too(repo):
    config = AutoConfig.from_pretrained(repo)
    model = GsvaForReasoningSegmentation.from_pretrained(
        repo, config=config, dtype="float16", segmenter_dtype="float32"
    )
    assert (encoder_dtype(model), config.segmenter_dtype) == (torch.float32, None)
    options = {"segmenter_dtype": "float16", "segmenter_batch_size": 3}
    pipe = pipeline("reasoning-segmentation", model=str(EMBEDDED_MODEL), model_kwargs=options)
    assert (pipe.model.dtype, encoder_dtype(pipe.model)) == (torch.float32, torch.float16)
    assert pipe.model.config.segmenter_batch_size == 3


@torch.no_grad()
def test_masks_of_the_recorded_lisa_stay(lisa_repo):
    processor, exact = AutoProcessor.from_pretrained(lisa_repo), AutoModel.from_pretrained(lisa_repo, dtype="float32")
    half = AutoModel.from_pretrained(lisa_repo, dtype="float32", segmenter_dtype="bfloat16")
    phrases = ["the dog", "a cup", "the sky", "something to sit on", "what could hold water", "a hat"]
    inputs = processor(images=recorded_image("lisa", "img0"), phrases=[phrases], return_tensors="pt")
    output, drawn = exact.eval()(**inputs), []
    assert not output.rejected[0].any()
    for segmenter in (exact.segmenter, half.eval().segmenter):
        adapter = segmenter_adapter(segmenter)
        features = adapter.encode(inputs["sam_pixel_values"])
        features = {name: value.expand(len(phrases), *value.shape[1:]) for name, value in features.items()}
        drawn.append((adapter.decode(features, output.prompt_embeddings[0])[0] > 0).flatten(1))
    overlap, union = (drawn[0] & drawn[1]).sum(1), (drawn[0] | drawn[1]).sum(1)
    assert union.min() > 1000
    assert (overlap / union).mean() >= 0.995


def test_float16_on_a_processor_says_that_it_is_slow(repo):
    segmenter = segmenter_adapter(AutoModel.from_pretrained(repo, segmenter_dtype="float16").segmenter)
    with pytest.warns(UserWarning, match='Load the model with segmenter_dtype="float32" or "bfloat16"'):
        segmenter.encode(torch.randn(1, 3, tiny.SAM_SIDE, tiny.SAM_SIDE))


@pytest.mark.slow
@torch.no_grad()
def test_masks_of_the_embedded_model_stay():
    """The whole measurement is `python -m benchmarks.segmenter_precision`."""
    processor = AutoProcessor.from_pretrained(EMBEDDED_MODEL)
    exact = AutoModel.from_pretrained(EMBEDDED_MODEL, dtype="auto").eval()
    half = AutoModel.from_pretrained(EMBEDDED_MODEL, dtype="auto", segmenter_dtype="bfloat16").eval()
    questions = tabletop_questions("test", SCENES)
    images, texts, answers = zip(*((one.image, one.text, one.answer) for one in questions), strict=True)
    inputs = processor(images=list(images), text=list(texts), answer=list(answers), return_tensors="pt")
    expected, found = exact(**inputs), half(**inputs)
    assert torch.equal(torch.cat(found.rejected), torch.cat(expected.rejected))
    kept = ~torch.cat(expected.rejected)
    masks = [(torch.cat(output.pred_masks)[kept] > 0).flatten(1) for output in (expected, found)]
    overlap, union = (masks[0] & masks[1]).sum(1), (masks[0] | masks[1]).sum(1)
    assert len(overlap) > 30
    assert (overlap / union.clamp(min=1)).mean() >= 0.995


# ---- memory ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_images_are_encoded_a_few_at_a_time(repo):
    model = AutoModel.from_pretrained(repo, segmenter_batch_size=3).eval()
    images, ids = tiny.images(8), tiny.with_answers(tiny.prompts([6] * 8), [[10, tiny.SEG]] * 8)
    seen = []
    model.segmenter.vision_encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    parted = model(**ids, **images)
    assert seen == [3, 3, 2]
    model.config.segmenter_batch_size = None  # views this small all go at once
    whole = model(**ids, **images)
    assert seen[3:] == [8]
    for a, b in zip(parted.pred_masks, whole.pred_masks, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    model.config.segmenter_batch_size = -1
    for wrong, build in (
        (-1, lambda: model(**ids, **images)),
        (0, lambda: tiny.gsva_config(segmenter_batch_size=0)),
        (-2, lambda: AutoModel.from_pretrained(repo, segmenter_batch_size=-2)),
    ):
        with pytest.raises(ValueError, match=f"segmenter_batch_size is {wrong}; it must be 1 or more"):
            build()
    model.config.segmenter_batch_size = 3
    model.train()(**ids, **images)  # where every process must call the encoder equally often
    assert seen[4:] == [8]


@torch.no_grad()
def test_many_prompts_are_decoded_in_parts_with_the_same_result():
    segmenter = segmenter_adapter(tiny.gsva_model(seed=2).eval().segmenter)
    features = segmenter.encode(torch.randn(1, 3, tiny.SAM_SIDE, tiny.SAM_SIDE))
    prompts = torch.randn(40, 32)[:, : features["image_embeddings"].shape[1]]
    many = {name: value.expand(40, *value.shape[1:]) for name, value in features.items()}
    masks, scores = segmenter.decode(many, prompts)
    for row in (0, 17, 39):
        mask, score = segmenter.decode(features, prompts[row : row + 1])
        torch.testing.assert_close(masks[row], mask[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores[row], score[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_language_model_s_images_are_encoded_a_few_at_a_time(repo, monkeypatch):
    model, seen = AutoModel.from_pretrained(repo).eval(), []
    images, ids = tiny.images(5), tiny.with_answers(tiny.prompts([6] * 5), [[10, tiny.SEG]] * 5)
    whole = model(**ids, **images)
    model.vlm.model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    monkeypatch.setattr(composed_model, "_PIXELS_AT_ONCE", 2 * images["pixel_values"][0, 0].numel())
    cache = model.encode_image(**images)
    assert seen == [2, 2, 1]
    parted = model(**ids, image_cache=cache)
    torch.testing.assert_close(parted.logits, whole.logits, atol=1e-5, rtol=1e-5)
    model.train()(**ids, **images)
    assert seen[3:] == [5]


@torch.no_grad()
def test_many_heat_maps_are_drawn_a_few_at_a_time(monkeypatch):
    model, seen = tiny.ivm_model().eval(), []
    batch = {**tiny.prompts([5, 9, 7]), **tiny.images(3)}
    whole = model(**batch)
    model.segmenter.mask_decoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    monkeypatch.setattr(modeling_ivm, "DRAWN_AT_ONCE", 2)
    parted = model(**batch)
    assert seen == [2, 1]
    torch.testing.assert_close(torch.cat(parted.pred_masks), torch.cat(whole.pred_masks), atol=1e-5, rtol=1e-5)
