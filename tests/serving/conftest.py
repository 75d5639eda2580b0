"""The embedded model, scenes it knows, and what the pipeline says about them."""

import pytest
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

import reasonseg
from reasonseg.tabletop.scenes import draw_scene


@pytest.fixture(scope="package")
def scenes():
    return [Image.fromarray(draw_scene("test", number).image) for number in range(4, 8)]


@pytest.fixture(scope="package")
def embedded():
    model = AutoModel.from_pretrained(reasonseg.EMBEDDED_MODEL).eval()
    return model, AutoProcessor.from_pretrained(reasonseg.EMBEDDED_MODEL)


@pytest.fixture(scope="package")
def pipe(embedded):
    return pipeline("reasoning-segmentation", model=embedded[0], processor=embedded[1])
