"""The reader of IVM-Mix-1M: lines, heat-maps, boxes, crops, and what is said about broken files."""

import json
import random

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from reasonseg.data.data_files import DataFileError
from reasonseg.data.ivm_mix import (
    IvmMixDataset,
    IvmMixSource,
    boxes_to_mask,
    normalise_heatmap,
    random_crop,
    read_records,
)


@pytest.fixture
def source(tmp_path) -> IvmMixSource:
    """Three lines: a heat-map, an image with a name of its own, and boxes instead of a heat-map."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "coco").mkdir(parents=True)
    masks.mkdir()
    rng = np.random.default_rng(0)
    for name in ("img_a.jpg", "coco/7.png", "img_c.jpg"):
        Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(images / name)
    heatmap = np.zeros((50, 60), dtype=np.uint8)
    heatmap[:, :30] = 200
    for name in ("a", "b"):
        Image.fromarray(heatmap).save(masks / f"mask_{name}.jpg", quality=100)
    lines = [
        {"uuid": "a", "instruction": ["find the cup", "where is the cup?"]},
        {"uuid": "b", "instruction": "sit down", "image": "coco/7.png"},
        {"uuid": "c", "instruction": ["go"], "boxes": [0.5, 0.0, 1.0, 1.0]},
    ]
    meta = tmp_path / "meta.jsonl"
    meta.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return IvmMixSource(meta, images, masks, human=True)


def write(source: IvmMixSource, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    source.meta.write_text(text, encoding="utf-8")


def test_every_line_becomes_an_example(source):
    data = IvmMixDataset([source], size=32, augment=False)
    assert len(data) == 3
    first, second, third = data
    assert first.instruction == "find the cup"
    assert second.instruction == "sit down"
    assert data.human_flags == [True, True, True]
    for example in (first, second, third):
        assert example.image.size == (32, 32)
        assert example.mask.shape == (32, 32)
        assert example.mask.dtype == np.float32
    assert first.mask[:, :14].mean() == pytest.approx(1.0, abs=0.01)
    assert first.mask[:, 18:].mean() == pytest.approx(0.0, abs=0.01)
    assert third.mask[:, :15].max() == 0.0
    assert third.mask[:, 17:].min() == 1.0


def test_heatmaps_are_brightened_and_stretched():
    heatmap = np.array([[10, 20, 100], [170, 200, 255]], dtype=np.uint8)
    # 1.5 times the value, 255 at most, then from the smallest to the largest: 15, 30, 150, 255, 255, 255
    expected = (np.array([[15, 30, 150], [255, 255, 255]]) - 15) / 240
    np.testing.assert_allclose(normalise_heatmap(heatmap), expected, atol=1e-7)
    assert normalise_heatmap(np.full((2, 2), 7, dtype=np.uint8)).tolist() == [[1, 1], [1, 1]]
    assert normalise_heatmap(np.zeros((2, 2), dtype=np.uint8)).tolist() == [[0, 0], [0, 0]]


def test_heatmaps_in_colour_are_read_with_red_and_blue_swapped():
    """As the original reads them: blue weighs 0.299 and red 0.114."""
    coloured = np.zeros((1, 4, 3), dtype=np.uint8)
    coloured[0, 1:] = [[100, 0, 0], [0, 100, 0], [0, 0, 100]]
    grey = np.rint(1.5 * np.array([0, 11, 59, 30]))
    np.testing.assert_allclose(normalise_heatmap(coloured)[0], grey / grey.max(), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (50, 50)])
def test_boxes_lie_in_the_padded_square(height, width):
    side = max(height, width)
    mask = boxes_to_mask([0.25, 0.25, 0.75, 0.5], height, width)
    square = np.zeros((side, side), dtype=np.float32)
    square[round(0.25 * side) : round(0.5 * side), round(0.25 * side) : round(0.75 * side)] = 1
    top, left = (side - height) // 2, (side - width) // 2
    inside = square[top : top + height, left : left + width]
    # edges are cut to whole pixels
    assert np.abs(mask - inside).sum() <= mask.shape[0] + mask.shape[1]
    assert mask.sum() > 0
    both = boxes_to_mask([[0.25, 0.25, 0.75, 0.5], [0.0, 0.4, 0.3, 0.6]], height, width)
    assert (both >= mask).all()
    assert both.sum() > mask.sum()


def test_a_box_is_cut_to_whole_pixels():
    mask = boxes_to_mask([0.1, 0.25, 0.5, 0.75], 4, 8)  # a square of 8 with 2 rows above
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max()) == (0, 3)
    assert (rows.min(), rows.max()) == (0, 3)


@pytest.mark.parametrize("boxes", [[0, 0, 1], [0.5, 0, 0.2, 1], [0, 0, 300, 200], "box", [[0, 0, 1, 1], [0, 0]], []])
def test_wrong_boxes(boxes):
    with pytest.raises(DataFileError, match="is not a box"):
        boxes_to_mask(boxes, 10, 10)


def test_crops_change_with_the_epoch_and_with_nothing_else(source):
    data = IvmMixDataset([source], size=32, seed=3)
    first = [data[0] for _ in range(2)]
    assert np.array_equal(np.asarray(first[0].image), np.asarray(first[1].image))
    assert first[0].instruction == first[1].instruction
    data.set_epoch(1)
    assert not np.array_equal(np.asarray(data[0].image), np.asarray(first[0].image))
    instructions = set()
    for epoch in range(20):
        data.set_epoch(epoch)
        instructions.add(data[0].instruction)
        example = data[0]
        # image and mask are cut alike: the edge stays near the middle
        assert 0.25 < example.mask.mean() < 0.75
    assert instructions == {"find the cup", "where is the cup?"}


@pytest.mark.parametrize(("height", "width"), [(100, 100), (40, 160), (200, 30), (3, 3)])
def test_crops_keep_their_area_and_ratio(height, width):
    rng = random.Random(0)
    for _ in range(50):
        left, top, right, bottom = random_crop(height, width, rng)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        ratio = (right - left) / (bottom - top)
        slack = 1 + 2 / min(height, width)
        assert 3 / 4 / slack <= ratio <= 4 / 3 * slack
        if (height, width) == (100, 100):
            assert 0.79 <= (right - left) * (bottom - top) / 10_000 <= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: Expecting property name"),
        ("[1, 2]", "line 2: it needs an object with `uuid`"),
        ({"instruction": ["x"]}, "line 2: it needs an object with `uuid`"),
        ({"uuid": "x"}, "line 2: `instruction` of x must be"),
        ({"uuid": "x", "instruction": []}, "line 2: `instruction` of x must be"),
        ({"uuid": "x", "instruction": ["a"], "image": 7}, "line 2: `image` of x must be"),
        ({"uuid": "x", "instruction": ["a"], "image": "../x.jpg"}, "line 2: .* leads out of the folder"),
        ({"uuid": "/x", "instruction": ["a"], "image": "/etc/x.jpg"}, "line 2: .* leads out of the folder"),
        ({"uuid": "x", "instruction": ["a"], "boxes": [0, 0, 2, 2]}, "line 2: .* is not a box"),
    ],
)
def test_wrong_lines_are_named(source, line, message):
    write(source, {"uuid": "a", "instruction": ["fine"]}, line)
    with pytest.raises(DataFileError, match=message):
        read_records(source)


def test_workers_follow_the_epoch(source):
    """Workers of a persistent loader are started before the second epoch is announced."""
    data = IvmMixDataset([source], size=32)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    drawn = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        drawn.append([example.image.tobytes() for example in loader])
        assert drawn[-1] == [example.image.tobytes() for example in data]
    assert drawn[0] != drawn[1]


def test_missing_and_empty_files(source, tmp_path):
    with pytest.raises(DataFileError, match=r"There is no file .*none\.jsonl"):
        read_records(IvmMixSource(tmp_path / "none.jsonl", tmp_path))
    write(source, "")
    with pytest.raises(DataFileError, match="has no lines"):
        read_records(source)
    with pytest.raises(DataFileError, match="There is no source"):
        IvmMixDataset([])


def test_lines_end_at_line_feeds_alone(source):
    line = {"uuid": "a", "instruction": ["find\u2028the\x85cup"]}
    source.meta.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8-sig")
    assert [record.instructions for record in read_records(source)] == [("find\u2028the\x85cup",)]


def test_heat_maps_of_the_stored_pixels_are_refused(source, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 24)).save(tmp_path / "images" / "img_a.jpg", exif=exif)
    Image.new("L", (40, 24), 255).save(tmp_path / "masks" / "mask_a.jpg")
    write(source, {"uuid": "a", "instruction": ["x"]})
    (record,) = read_records(source)
    with pytest.raises(DataFileError, match=r"mask_a\.jpg is 40 x 24 pixels, its image 24 x 40. .* upright frame"):
        record.read_mask(*reversed(record.read_image().size))
    Image.new("L", (12, 20), 255).save(tmp_path / "masks" / "mask_a.jpg")
    assert record.read_mask(40, 24).shape == (40, 24), (
        "another size of the same frame is stretched, as in the original"
    )


@pytest.mark.parametrize("broken", ["images/img_a.jpg", "masks/mask_a.jpg"])
@pytest.mark.parametrize("damage", ["missing", "no image"])
def test_unreadable_files_are_an_error_or_skipped(source, broken, damage, tmp_path):
    path = tmp_path / broken
    path.unlink()
    if damage == "no image":
        path.write_bytes(b"no image")
    data = IvmMixDataset([source], size=32, augment=False)
    with pytest.raises(DataFileError, match=rf"of a: .*{path.name}"):
        data[0]
    skipping = IvmMixDataset([source], size=32, augment=False, skip_unreadable=True)
    assert skipping[0].instruction == "sit down"
    write(source, {"uuid": "a", "instruction": ["alone"]})
    with pytest.raises(DataFileError, match="No example"):
        IvmMixDataset([source], size=32, skip_unreadable=True)[0]


def test_reading_past_the_end(source):
    with pytest.raises(IndexError):
        IvmMixDataset([source])[3]
