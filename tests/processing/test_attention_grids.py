"""Where image tokens lie in the image, for every family of processors."""

from types import SimpleNamespace

import numpy as np
import pytest

from reasonseg.processing.attention_grids import (
    AttentionGrid,
    attention_grids,
    grid_inputs,
    unpadded_grid,
    view_box,
)
from tests.processing.test_processing_reasoning_segmentation import (
    IMAGES,
    llava_next_processor,
    llava_processor,
    qwen_processor,
)


SIZES = [(image.height, image.width) for image in IMAGES]


def views_of(processor, images) -> dict:
    text = [processor.image_token] * len(images)
    return dict(processor(text=text, images=[[image] for image in images], return_tensors="np", padding=True))


def test_llava_crops_the_middle():
    processor = llava_processor()
    grids = attention_grids(processor, views_of(processor, IMAGES), SIZES)
    assert {(grid.rows, grid.columns) for grid in grids} == {(2, 2)}
    # 60 x 30, 30 x 60, 40 x 40: the square in the middle
    assert [grid.box for grid in grids] == [(0, 15, 30, 45), (15, 0, 45, 30), (0, 0, 40, 40)]
    assert grids[0].tokens.tolist() == [0, 1, 2, 3]


def image_processor(**options):
    known = {"do_pad": False, "do_resize": True, "do_center_crop": True, "size": {"shortest_edge": 28}}
    return SimpleNamespace(**{**known, "crop_size": {"height": 28, "width": 28}, **options})


@pytest.mark.parametrize(
    ("options", "size", "box"),
    [
        ({"do_pad": True}, (120, 160), (0, -20, 160, 140)),
        ({"do_pad": True}, (171, 110), (-30, 0, 141, 171)),
        ({}, (120, 160), (20, 0, 140, 120)),
        ({"crop_size": {"height": 14, "width": 14}}, (120, 160), (50, 30, 110, 90)),
        ({"size": {"height": 28, "width": 28}}, (120, 160), (0, 0, 160, 120)),
        ({"do_center_crop": False}, (120, 160), (0, 0, 160, 120)),
    ],
)
def test_what_a_view_shows(options, size, box):
    assert view_box(image_processor(**options), size) == box


def test_llava_next_drops_newlines_and_padding():
    processor = llava_next_processor()
    for image, size in zip(IMAGES, SIZES, strict=True):
        views = views_of(processor, [image])
        (fine,) = attention_grids(processor, views, [size])
        (base,) = attention_grids(processor, views, [size], "base")
        count = int((np.array(views["input_ids"][0]) == processor.image_token_id).sum())
        assert base.tokens.tolist() == [0, 1, 2, 3]
        assert count == 4 + fine.rows * (fine.columns + 1), "base, grid, a newline per row"
        newlines = set(range(4, count)) - set(fine.tokens.tolist())
        assert newlines == {4 + row * (fine.columns + 1) + fine.columns for row in range(fine.rows)}
        assert fine.box == base.box == (0, 0, size[1], size[0])


def test_unpadded_sizes():
    # a square image on 2 x 4 patches keeps 2 columns; a wide one on 4 x 4 keeps 2 rows
    assert unpadded_grid(2, 4, (40, 40)) == (2, 2)
    assert unpadded_grid(4, 4, (30, 60)) == (2, 4)
    assert unpadded_grid(24, 48, (30, 60)) == (24, 48)


def test_qwen_keeps_the_proportions():
    processor = qwen_processor()
    views = views_of(processor, IMAGES)
    grids = attention_grids(processor, views, SIZES)
    for grid, size, ids in zip(grids, SIZES, views["input_ids"], strict=True):
        assert grid.rows * grid.columns == int((np.array(ids) == processor.image_token_id).sum())
        assert grid.box == (0, 0, size[1], size[0])
        assert (grid.rows > grid.columns) == (size[0] > size[1])
    with pytest.raises(ValueError, match="An image with 2 frames"):
        attention_grids(processor, {"image_grid_thw": [[2, 4, 4]]}, [(40, 40)])


def internvl():
    """InternVL's processor as far as it is looked at; its own wants a tokenizer with InternVL's tokens."""
    view = SimpleNamespace(crop_to_patches=True, size={"height": 28, "width": 28}, min_patches=1, max_patches=4)
    return SimpleNamespace(image_processor=view, image_seq_length=4, patch_size=14)


def test_internvl_puts_tiles_together():
    size = (30, 60)  # 1 x 2 tiles of 2 x 2 tokens, then the thumbnail
    tiled, single_tile = {"pixel_values": [0, 0, 0]}, {"pixel_values": [0]}
    (fine,) = attention_grids(internvl(), tiled, [size])
    assert (fine.rows, fine.columns) == (2, 4)
    assert fine.tokens.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    (base,) = attention_grids(internvl(), tiled, [size], "base")
    assert base.tokens.tolist() == [8, 9, 10, 11]
    assert fine.tiles == base.tiles == 3
    assert grid_inputs([fine])["tile_counts"] == [3]
    for level in ("fine", "base"):
        (single,) = attention_grids(internvl(), single_tile, [size], level)
        assert single.tokens.tolist() == [0, 1, 2, 3]
        assert "tile_counts" not in grid_inputs([single])
    with pytest.raises(ValueError, match="5 tokens per tile form no square"):
        attention_grids(SimpleNamespace(**{**vars(internvl()), "image_seq_length": 5}), tiled, [size])


def test_inputs_of_equal_length():
    processor = llava_next_processor()
    grids = [attention_grids(processor, views_of(processor, [image]), [size])[0]
             for image, size in zip(IMAGES, SIZES, strict=True)]  # fmt: skip
    inputs = grid_inputs(grids)
    assert len({len(tokens) for tokens in inputs["grid_tokens"]}) == 1
    for tokens, grid in zip(inputs["grid_tokens"], grids, strict=True):
        assert [token for token in tokens if token >= 0] == grid.tokens.tolist()


def test_boxes_in_whole_pixels():
    tokens = np.arange(4)
    inputs = grid_inputs([AttentionGrid(2, 2, (20.4, 0.0, 139.6, 120.0), tokens)])
    assert inputs["grid_boxes"] == [[20, 0, 140, 120]]
    assert all(type(edge) is int for edge in inputs["grid_boxes"][0])


def test_unknown_families_and_levels():
    with pytest.raises(ValueError, match="It is not known where the image tokens of SimpleNamespace lie"):
        attention_grids(SimpleNamespace(image_processor=SimpleNamespace()), {}, [(10, 10)])
    # Pixtral: patches too, but of an image of any size, with a token behind each row
    alike = SimpleNamespace(image_processor=image_processor(), patch_size=14)
    views = {"pixel_values": np.zeros((1, 3, 28, 42))}
    with pytest.raises(ValueError, match="It is not known where the image tokens"):
        attention_grids(alike, views, [(28, 42)])
    with pytest.raises(ValueError, match="The grid 'coarse' does not exist"):
        attention_grids(llava_processor(), {}, [], "coarse")
