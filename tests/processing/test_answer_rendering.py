"""Answers in the colours of their masks."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from reasonseg.processing.answer_rendering import draw_answer, draw_attention_maps, notebook_html, to_html
from reasonseg.processing.segments import Segment, SegmentationResult, segment_color


TEXT = "A brown <dog> sits on a bench & a cup.\nThe dog waits."
MASK = np.zeros((30, 40), dtype=bool)
MASK[5:20, 5:30] = True
IMAGE = Image.new("RGB", (40, 30), "gray")


def result(*segments: Segment) -> SegmentationResult:
    return SegmentationResult(TEXT, list(segments), (30, 40))


def at(part: str) -> tuple[int, int]:
    start = TEXT.index(part)
    return start, start + len(part)


DOG = Segment("A brown <dog>", at("A brown <dog>"), MASK, 0.9)
BENCH = Segment("a bench", at("a bench"), ~MASK, 0.8)
CUP = Segment("a cup", at("a cup"), None, 0.1, rejected=True)


def test_html_is_the_text_with_colours():
    page = to_html(result(DOG, BENCH, CUP))
    visible = re.sub(r"<[^>]*>", "", page)
    assert visible == TEXT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for place, part in ((0, "A brown &lt;dog&gt;"), (1, "a bench")):
        color = "rgb({}, {}, {})".format(*segment_color(place))
        assert re.search(rf'<mark style="background-color: {re.escape(color)};[^>]*>{part}</mark>', page)
    assert '<s title="not in the image">a cup</s>' in page


def test_html_escapes_labels():
    page = to_html(result(Segment('"><script>', at("a bench"), MASK, 1.0)))
    assert "<script>" not in page


def test_html_with_the_image():
    segments = result(DOG, BENCH)
    data = re.search(r'src="data:image/png;base64,([^"]*)"', to_html(segments, IMAGE))[1]
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert np.array_equal(np.asarray(shown), np.asarray(segments.overlay(IMAGE)))


def test_overlapping_and_missing_spans():
    page = to_html(result(DOG, Segment("dog", at("<dog>"), MASK, 0.5), Segment("nowhere", None, MASK, 0.5)))
    assert page.count("<mark") == 1
    assert to_html(result()).count("<mark") == 0


def test_a_notebook_shows_the_image_and_the_answer_under_it():
    segments = result(DOG, BENCH, CUP)
    segments.image = IMAGE
    page = segments._repr_html_()
    assert page == notebook_html(segments) == to_html(segments, IMAGE)
    assert (page.count("<mark"), page.count("<s ")) == (2, 1)
    segments.text, segments.segments, segments.image = "<script>alert(1)</script>", [Segment("<b>", (0, 8))], None
    assert "<img" in segments._repr_html_()
    assert "<script" not in segments._repr_html_()
    assert "<b>" not in segments._repr_html_()


def test_drawn_answers_show_the_colours():
    drawn = draw_answer(result(DOG, BENCH, CUP), width=300)
    assert drawn.mode == "RGB"
    assert drawn.width == 300
    colors = {color for _, color in drawn.getcolors(maxcolors=1 << 16)}
    assert {segment_color(0), segment_color(1)} <= colors
    assert segment_color(2) not in colors, "rejected phrases have no mask, and no colour"


def test_long_answers_get_more_lines():
    short = draw_answer(SegmentationResult("A dog.", [], (30, 40)), width=200)
    long = draw_answer(SegmentationResult("A dog and a cat. " * 40 + "x" * 300, [], (30, 40)), width=200)
    assert long.height > 5 * short.height
    with_image = draw_answer(SegmentationResult("A dog.", [], (30, 40)), IMAGE)
    assert with_image.width == 480
    assert with_image.height > 30


def test_a_wide_image_is_shown_whole():
    image = Image.new("RGB", (600, 120), "gray")
    image.paste("red", (0, 0, 60, 120))
    image.paste("blue", (540, 0, 600, 120))
    drawn = draw_answer(SegmentationResult("A dog.", [], (120, 600)), image, width=300)
    assert drawn.width == 300
    assert (drawn.getpixel((5, 30)), drawn.getpixel((294, 30))) == ((255, 0, 0), (0, 0, 255))
    assert (drawn.getpixel((150, 58)), drawn.getpixel((150, 62))) == ((128, 128, 128), (255, 255, 255))
    assert image.size == (600, 120)


def test_attention_maps_are_red_where_they_are_strong():
    maps = np.zeros((3, 2, 2))
    maps[0, 0, 0] = maps[1, 1, 1] = 1.0
    image = Image.new("RGB", (40, 40), "white")
    sheet = np.asarray(draw_attention_maps(image, maps, (0, 0, 40, 40), ["a", "dog", ""], per_row=2, cell_width=40))
    assert sheet.shape[1] == 2 * 46 + 6

    def greenness(x: int, y: int) -> int:
        return int(sheet[y, x, 1])

    assert greenness(8, 8) < greenness(40, 40), "the first looks at the upper left"
    assert greenness(46 + 40, 40) < greenness(46 + 8, 8), "the second at the lower right"
    # a grid that reaches beyond the image: what lies outside is cut off
    padded = draw_attention_maps(image, maps, (-40, 0, 40, 80), ["a", "b", "c"], cell_width=40)
    assert padded.width == 3 * 46 + 6
    with pytest.raises(ValueError, match="3 maps and 2 words"):
        draw_attention_maps(image, maps, (0, 0, 40, 40), ["a", "b"])


def test_too_narrow():
    with pytest.raises(ValueError, match="width is 50"):
        draw_answer(result(DOG), width=50)
