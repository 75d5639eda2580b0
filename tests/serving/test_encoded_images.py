"""Encoded images that are kept: taken apart, put together again with others, within bounds."""

import pytest
import torch

from reasonseg.serving.encoded_images import EncodedImages
from tests.modeling.test_modeling_coordinates import PAIRS, TOLERANCE, build, inputs_of, read
from tests.support.counting import counted


KEYS = ["a", "b"]
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "coordinate_reader": read}


@pytest.mark.parametrize("pair", PAIRS)
@torch.inference_mode()
def test_images_are_encoded_once_whatever_others_come_with_them(pair):
    """Features of one layer or of several, one view of an image or several, segmenters with one output or several."""
    vlm_config, segmenter_config, make_views = PAIRS[pair]
    model = build(vlm_config(), segmenter_config())
    kept, inputs = EncodedImages(model, 2**30), inputs_of(model, make_views, [0, 1])
    whole = model.generate_with_masks(**inputs, **OPTIONS)
    assert len(whole.pred_masks[0]) == len(whole.pred_masks[1]) == 2
    # The second image alone; the first one with it; both again.
    for rows, encodes in (([1], True), ([0, 1], True), ([1, 0], False)):
        keys, given = [KEYS[row] for row in rows], inputs_of(model, make_views, rows)
        with counted(model) as counts:
            images = kept.take(
                keys, given, lambda some, rows=rows: inputs_of(model, make_views, [rows[i] for i in some])
            )
            output = model.generate_with_masks(**given, **OPTIONS, image_cache=images, share_prefixes=False)
            kept.keep(keys, images)
        assert [counts[name] > 0 for name in ("vlm", "segmenter")] == [encodes, encodes]
        for place, row in enumerate(rows):
            start = given["input_ids"].shape[1]
            assert torch.equal(output.sequences[place, start:], whole.sequences[row, inputs["input_ids"].shape[1] :])
            torch.testing.assert_close(output.pred_masks[place], whole.pred_masks[row], **TOLERANCE)
    sizes = [size for _, size in kept._kept.values()]
    assert kept.num_bytes == sum(sizes) > 0
    # The one that was asked about first goes first.
    small = EncodedImages(model, kept.num_bytes - 1)
    small.keep(["b", "a"], images)
    assert list(small._kept) == ["a"]
    assert small.num_bytes == small._kept["a"][1]
    small.clear()
    none = EncodedImages(model, 0)
    none.keep(KEYS, images)
    assert small.num_bytes == none.num_bytes == 0
