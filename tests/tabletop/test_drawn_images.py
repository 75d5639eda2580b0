"""The embedded model says when it is shown something else than a drawn tabletop, and only then."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, pipeline
from typer.testing import CliRunner

from reasonseg import EMBEDDED_MODEL
from reasonseg.cli.app import app
from reasonseg.tabletop.drawn_images import MESSAGE, ForeignImageWarning, looks_like_a_tabletop
from reasonseg.tabletop.scenes import SPLITS, draw_scene
from tests.support.installed import forked
from tests.support.parity_data import PARITY


RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:200, :240]
RECORDED = sorted(
    path
    for pattern in ("*/images/*.png", "*/images/*.jpg", "*/image?.png", "vip_llava/visual_prompts/input?.png")
    for path in PARITY.glob(pattern)
)


def noise(side: int) -> Image.Image:
    """Random colours in spots of `240 / side` pixels."""
    spots = Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8))
    return spots.resize((240, 240), Image.Resampling.BICUBIC)


def texture(*colour: int) -> Image.Image:
    """One colour with the brightness of rough stone: what fills an image without being a table."""
    rough = sum(np.asarray(noise(side).convert("L"), dtype=float) for side in (12, 30, 80)) / 3 / 128
    return Image.fromarray(np.clip(rough[..., None] * colour, 0, 255).astype(np.uint8))


def shapes(background: tuple[int, int, int], grain: float) -> Image.Image:
    pixels = np.full((180, 240, 3), background, dtype=float)
    pixels[60:120, 40:110], pixels[30:90, 150:200] = (212, 44, 40), (46, 100, 214)
    return Image.fromarray(np.clip(pixels + RNG.normal(0, 1, pixels.shape) * grain, 0, 255).astype(np.uint8))


FOREIGN = {
    **{str(path.relative_to(PARITY)): Image.open(path) for path in RECORDED},
    **{f"noise of {side} spots": noise(side) for side in (4, 8, 16, 32, 240)},
    "gradient": Image.fromarray(np.stack([COLUMNS, ROWS, (ROWS + COLUMNS) // 2], axis=-1).astype(np.uint8)),
    "grey gradient": Image.fromarray(COLUMNS.astype(np.uint8)),
    "sunset": Image.fromarray(np.stack([255 - ROWS // 2, 160 - ROWS // 2, 40 + ROWS // 2], axis=-1).astype(np.uint8)),
    "brown stone": texture(172, 128, 88),
    "grey stone": texture(150, 150, 152),
    "grass": texture(70, 130, 50),
    "white": Image.new("RGB", (60, 40), "white"),
    "table colour": Image.new("RGB", (300, 200), (172, 128, 88)),
    "shapes on white": shapes((255, 255, 255), 3),
    "shapes on a table colour": shapes((184, 194, 188), 3),
    "photograph of a grey scale": Image.open(RECORDED[0]).convert("L"),
    "strip": Image.open(RECORDED[0]).resize((300, 2)),
    "one pixel": Image.new("RGB", (1, 1), "brown"),
}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(EMBEDDED_MODEL)


@pytest.fixture
def photograph():
    return Image.open(PARITY / "lisa" / "images" / "img0.png")


def scene(index: int, **options) -> Image.Image:
    return Image.fromarray(draw_scene(SPLITS[index % len(SPLITS)], 10_000 + index, **options).image)


@pytest.mark.slow
def test_200_scenes_give_no_alarm(processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ForeignImageWarning)
        processor(images=[scene(index) for index in range(200)], text=["What is it?"] * 200, return_tensors="pt")


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [as_jpeg, lambda image: image.resize((480, 480), Image.Resampling.LANCZOS), lambda image: image.resize((90, 90))],
    ids=["JPEG", "enlarged", "small"],
)
def test_scenes_that_were_saved_or_scaled_give_no_alarm(processor, change):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ForeignImageWarning)
        processor(images=[change(scene(index)) for index in range(40)])
        processor(images=[change(scene(index, size=320)) for index in range(4)])


@pytest.mark.parametrize("image", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_everything_else_does(processor, image, tensors):
    with pytest.warns(ForeignImageWarning, match="world is drawn tabletops"):
        processor(images=image, phrases="the cup", return_tensors=tensors)


def test_one_foreign_image_among_scenes_is_told_once(processor, photograph):
    with pytest.warns(ForeignImageWarning) as caught:
        processor(images=[scene(0), photograph, photograph])
    assert [str(warning.message) for warning in caught] == [MESSAGE]


def test_inverted_colours_are_no_tabletop():
    pixels = np.asarray(scene(0).resize((128, 128)), dtype=float)
    assert looks_like_a_tabletop(pixels)
    assert not looks_like_a_tabletop(255 - pixels)


def test_other_models_say_nothing(gsva_repo, processor, photograph, tmp_path):
    processor.save_pretrained(tmp_path)
    for repo in (gsva_repo, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ForeignImageWarning)
            AutoProcessor.from_pretrained(repo)(images=photograph, phrases="the cup")


def test_the_pipeline_without_a_model(photograph):
    pipe = pipeline("reasoning-segmentation")
    with pytest.warns(ForeignImageWarning):
        pipe(photograph, text="Where is the cup?", max_new_tokens=4)
    with pytest.warns(ForeignImageWarning):
        pipe(photograph, phrases="the cup")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ForeignImageWarning)
        pipe(scene(0), text="Where is the cup?", max_new_tokens=4)


@pytest.mark.slow
def test_the_installed_command_says_it_once_in_a_line(tmp_path):
    images = PARITY / "lisa" / "images"
    done = forked("segment", images, "-p", "the cup", "--model", "embedded", "--out", tmp_path / "out")
    assert done.stderr.count("drawn tabletops") == 1
    assert f"note: {MESSAGE}\n" in done.stderr
    assert "Warning" not in done.stderr


def test_demo_draws_what_the_model_knows(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo.png")])
    assert result.exit_code == 0
    assert "drawn tabletops" not in result.stderr
