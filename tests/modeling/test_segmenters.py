"""
The segmenter path against the `segment-anything` package, mask upsampling against SAM's own steps, and the mask losses
against values worked out by hand from their formulas.
"""

import copy
import importlib
import importlib.util
import math
import pickle
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQModel,
    SamHQVisionConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from reasonseg.conversion.rules_lisa_gsva import sam_table
from reasonseg.modeling import segmenters
from reasonseg.modeling.segmenters import (
    bce_per_mask,
    check_targets,
    dice_per_mask,
    mean_over_masks,
    segmenter_adapter,
    upsample_masks,
    with_heads_in_parts,
)


SIDE, PATCH, WIDTH, PROMPT = 128, 16, 32, 32


def original_sam_modules():
    """`segment_anything.modeling` alone: the package's own __init__ imports torchvision for its image transforms."""
    spec = importlib.util.find_spec("segment_anything")
    if spec is None:
        pytest.skip("segment-anything, the oracle of this test, is not installed")
    if "segment_anything" not in sys.modules:
        package = types.ModuleType("segment_anything")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["segment_anything"] = package
    return importlib.import_module("segment_anything.modeling")


@pytest.fixture(scope="module")
def original():
    modules = original_sam_modules()
    torch.manual_seed(0)
    grid = SIDE // PATCH
    sam = modules.Sam(
        image_encoder=modules.ImageEncoderViT(
            img_size=SIDE,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=3,
            num_heads=4,
            out_chans=PROMPT,
            qkv_bias=True,
            norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
            use_rel_pos=True,
            window_size=3,  # does not divide the grid of 8, so windows are padded
            global_attn_indexes=(1,),
        ),
        prompt_encoder=modules.PromptEncoder(
            embed_dim=PROMPT, image_embedding_size=(grid, grid), input_image_size=(SIDE, SIDE), mask_in_chans=8
        ),
        mask_decoder=modules.MaskDecoder(
            transformer_dim=PROMPT,
            transformer=modules.TwoWayTransformer(depth=2, embedding_dim=PROMPT, num_heads=4, mlp_dim=64),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=24,
        ),
    )
    for parameter in sam.parameters():
        parameter.data.normal_(0, 0.2)
    return sam.eval()


@pytest.fixture(scope="module")
def ours(original):
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            output_channels=PROMPT,
            image_size=SIDE,
            patch_size=PATCH,
            window_size=3,
            global_attn_indexes=[1],
            num_pos_feats=PROMPT // 2,
            mlp_dim=4 * WIDTH,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=PROMPT, image_size=SIDE, patch_size=PATCH, mask_input_channels=8
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=PROMPT, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=24, layer_norm_eps=1e-5
        ),
    )
    model = SamModel(config).eval()
    table = sam_table(target="")
    state = {table.rename(key): value for key, value in original.state_dict().items() if "pixel_" not in key}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert missing == ["prompt_encoder.shared_embedding.positional_embedding"], "tied to the image-wide one"
    return segmenter_adapter(model)


@pytest.fixture(params=["sam", "sam_hq"])
def encoder(request, ours):
    """An image encoder of transformers as it is, with a global layer of four heads and relative positions."""
    if request.param == "sam":
        return copy.deepcopy(ours.segmenter)
    sizes = ours.segmenter.config.vision_config.to_dict()
    config = SamHQConfig(
        vision_config=SamHQVisionConfig(**sizes), mask_decoder_config=SamHQMaskDecoderConfig(vit_dim=WIDTH)
    )
    model = SamHQModel(config).eval()
    for parameter in model.vision_encoder.parameters():
        parameter.data.normal_(0, 0.2)
    return model


def test_heads_in_parts_attend_as_all_at_once(encoder, monkeypatch):
    views, (grid, heads) = torch.randn(2, 3, SIDE, SIDE), (SIDE // PATCH, 4)
    with torch.no_grad():
        expected = encoder.vision_encoder(views)[0]
    with_heads_in_parts(encoder)
    attention = encoder.vision_encoder.layers[1].attn
    positions, whole = [], type(attention).get_decomposed_rel_pos

    def counted(self, *arguments):
        positions.append(whole(self, *arguments).numel())
        return whole(self, *arguments)

    monkeypatch.setattr(type(attention), "get_decomposed_rel_pos", counted)
    monkeypatch.setattr(segmenters, "_POSITIONS_AT_ONCE", 3 * 2 * grid**4)  # three heads of both images, then one
    with torch.no_grad():
        torch.testing.assert_close(encoder.vision_encoder(views)[0], expected, atol=1e-6, rtol=1e-6)
        assert max(positions) == 3 * 2 * grid**4
        unpickled = pickle.loads(pickle.dumps(attention))  # noqa: S301
        for copied in (copy.deepcopy(attention), unpickled):
            positions.clear()
            copied(torch.randn(2, grid, grid, WIDTH))
            assert positions == [3 * 2 * grid**4, 2 * grid**4]
    positions.clear()
    encoder.vision_encoder(views)[0].sum().backward()  # what gradients need is kept anyway
    assert max(positions) == heads * 2 * grid**4
    assert attention.rel_pos_h.grad.abs().sum() > 0


@torch.no_grad()
def test_encoder_and_decoder_equal_segment_anything(original, ours):
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    expected = original.image_encoder(pixels)
    features = ours.encode(pixels)
    torch.testing.assert_close(features["image_embeddings"], expected, atol=1e-4, rtol=1e-4)

    prompts, images = torch.randn(3, PROMPT), torch.tensor([0, 1, 1])
    masks, scores = ours.decode({name: value[images] for name, value in features.items()}, prompts)
    for image, rows in ((0, [0]), (1, [1, 2])):
        _, dense = original.prompt_encoder(points=None, boxes=None, masks=None)
        low_res, iou = original.mask_decoder(
            image_embeddings=expected[image : image + 1],
            image_pe=original.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[rows][:, None],
            dense_prompt_embeddings=dense.expand(len(rows), -1, -1, -1),
            multimask_output=False,
        )
        torch.testing.assert_close(masks[rows], low_res[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(scores[rows], iou[:, 0], atol=1e-4, rtol=1e-4)
    assert masks.shape[-2:] == ours.mask_size


def test_upsampling_equals_segment_anything(original):
    torch.manual_seed(2)
    low_res = torch.randn(3, 32, 32)
    resized, image = (96, 128), (150, 200)
    expected = F.interpolate(low_res[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    expected = F.interpolate(expected[..., :96, :128], image, mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(upsample_masks(low_res, SIDE, resized, image), expected)
    assert torch.equal(original.postprocess_masks(low_res[:, None], resized, image)[:, 0], expected)


def test_upsampling_leaves_16_bit():
    low_res = torch.randn(1, 8, 8, dtype=torch.bfloat16)
    assert upsample_masks(low_res, 32, (32, 16), (64, 32)).dtype == torch.float32


def test_bce_of_logit_zero_is_ln_2():
    logits, targets = torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)
    targets[1] = 1
    torch.testing.assert_close(bce_per_mask(logits, targets), torch.full((2,), math.log(2)))


def test_bce_averages_over_pixels():
    logits = torch.tensor([[[20.0, -20.0], [20.0, -20.0]]])
    targets = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    torch.testing.assert_close(bce_per_mask(logits, targets), torch.tensor([5.0]), atol=1e-4, rtol=1e-4)


def test_dice_of_half_right_mask():
    """4 of 8 target pixels found, nothing else: 1 - 2*4 / (4 + 8), up to the smoothing term."""
    logits, targets = torch.full((1, 4, 4), -50.0), torch.zeros(1, 4, 4)
    targets[0, :2] = 1
    logits[0, 0] = 50
    expected = 1 - (8 / 1000 + 1e-6) / (12 / 1000 + 1e-6)
    torch.testing.assert_close(dice_per_mask(logits, targets), torch.tensor([expected]), atol=1e-6, rtol=1e-5)


def test_dice_of_a_rejection_is_about_one():
    """Logit 0 against an empty target: the constant that GSVA's rejected slots add."""
    height, width = 40, 50
    expected = 1 - 1e-6 / (height * width / 2000 + 1e-6)
    loss = dice_per_mask(torch.zeros(1, height, width), torch.zeros(1, height, width))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_mean_over_masks():
    torch.testing.assert_close(mean_over_masks([torch.tensor([1.0, 2.0]), torch.tensor([6.0])]), torch.tensor(3.0))
    assert mean_over_masks([torch.zeros(0)]) == 0


@pytest.mark.parametrize("values", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_targets_of_every_number_format(values):
    for size in ((40, 50), (16, 16)):
        targets = torch.ones(2, *size).to(values)
        assert check_targets(targets, 0, (40, 50)) is targets
    check_targets(torch.ones(2, 3, 7).to(values), 0, None)
    check_targets(torch.tensor([[[-1e-6, 1 + 1e-6]]]), 0, None)
    check_targets(torch.rand(1, 20, 25), 0, (40, 50), any_size=True)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((1, 40, 50), 255, dtype=torch.uint8), r"row 3 have values from 255 to 255; .* by 255"),
        (torch.tensor([[[-0.5, 1.0]]]).expand(1, 50, 2)[:, :40].repeat(1, 1, 25), "from -0.5 to 1"),
        (torch.full((1, 40, 50), float("nan")), "values from nan to nan"),
        (torch.ones(1, 50, 40), r"row 3 are \(50, 40\) pixels \(height, width\), its upright image \(40, 50\)"),
        (torch.ones(1, 1, 50), r"are \(1, 50\) pixels"),
        (torch.ones(1, 40, 1), r"are \(40, 1\) pixels"),
        (torch.ones(40, 50), r"shape \(40, 50\); give \(masks, height, width\)"),
        (torch.ones(1, 0, 0), r"shape \(1, 0, 0\)"),
    ],
)
@pytest.mark.parametrize("any_size", [False, True])
def test_targets_that_would_train_something_else(targets, message, any_size):
    with pytest.raises(ValueError, match=message):
        check_targets(targets, 3, (40, 50), any_size)


def test_another_size_is_for_models_that_squeeze_images():
    with pytest.raises(ValueError, match="squeezed to a square"):
        check_targets(torch.ones(1, 20, 25), 0, (40, 50))
