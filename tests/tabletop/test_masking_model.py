"""IVMs for drawn tabletops: from random weights, or with the encoders of the embedded model."""

import torch

from reasonseg.model_names import EMBEDDED_MODEL
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.tabletop.model import VLM_PATCH, VLM_SIDE
from reasonseg.tabletop.scenes import draw_scene
from tests.support.tabletop_masking import masking_model_from, masking_processor


def test_what_the_embedded_model_knows_is_kept():
    base = GsvaForReasoningSegmentation.from_pretrained(EMBEDDED_MODEL, attn_implementation="eager")
    model, other = (masking_model_from(base, seed).eval() for seed in (0, 1))
    assert model.config.segmenter_config.mask_decoder_config.num_multimask_outputs == 0
    assert base.config.segmenter_config.mask_decoder_config.num_multimask_outputs == 1, "the base stays as it was"
    for name, value in model.vlm.state_dict().items():
        assert torch.equal(value, base.vlm.state_dict()[name]), name
    assert not torch.equal(model.seg_projector.linear_1.weight, other.seg_projector.linear_1.weight)

    processor = masking_processor(VLM_SIDE, VLM_PATCH)
    batch = processor(images=[draw_scene("test", 0).image], text=["red"], return_tensors="pt")
    with torch.no_grad():
        (masks,) = model(**batch).pred_masks
        images = model.encode_image(**batch)
        expected = base.encode_image(**batch)
        index = torch.tensor([0])
        embeddings = [
            one._segmenter_features(cache, index)["image_embeddings"]
            for one, cache in ((model, images), (base, expected))
        ]
    torch.testing.assert_close(*embeddings)
    assert torch.isfinite(masks).all()
