"""The pipeline on everything that the library `datasets` and transformers' own wrappers give."""

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import reasonseg  # noqa: F401 - so that the pipeline is known


datasets = pytest.importorskip("datasets", reason="The extra `data` (pip install datasets) is not installed.")
IMAGES = [
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (size, 50, 3), dtype=np.uint8))
    for number, size in enumerate((40, 60, 50))
]
TEXTS = ["the red cup", "a bowl", "the largest cup"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("reasoning-segmentation")


@pytest.fixture(scope="module")
def rows():
    features = datasets.Features(
        {"image": datasets.Image(), "phrases": datasets.Value("string"), "label": datasets.Value("int64")}
    )
    return datasets.Dataset.from_dict({"image": IMAGES, "phrases": TEXTS, "label": [0, 1, 2]}, features=features)


@pytest.fixture(scope="module")
def expected(pipe):
    return results(pipe(IMAGES, phrases=[[text] for text in TEXTS], reject_threshold=0.0))


def results(found) -> list:
    """What can be compared of answers."""
    return [
        (
            answer["generated_text"],
            [(one["label"], one["box_xyxy"], np.asarray(one["mask"]).sum()) for one in segments],
        )
        for answer in found
        for segments in [answer["segments"]]
    ]


@pytest.mark.parametrize(
    "given",
    [
        lambda rows: rows,
        lambda rows: rows.to_iterable_dataset(),
        lambda rows: rows.with_format("numpy"),
        lambda rows: rows.with_format("torch"),
        lambda rows: rows.cast_column("image", datasets.Image(decode=False)),
        lambda rows: rows.select([2, 1, 0]).select([2, 1, 0]),
        lambda rows: [{name: row[name] for name in ("image", "phrases")} for row in rows],
        lambda rows: (row for row in rows),
        lambda rows: ((row["image"], [row["phrases"]], row["label"]) for row in rows),
    ],
    ids=["rows", "stream", "numpy", "torch", "undecoded", "selected", "list", "generator", "tuples"],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_rows_that_bring_their_phrases(pipe, rows, expected, given, batch_size):
    found = pipe(given(rows), reject_threshold=0.0, batch_size=batch_size)
    assert results(found) == expected


@pytest.mark.parametrize(
    ("images", "phrases"),
    [
        (lambda rows: rows["image"], lambda rows: rows["phrases"]),
        (lambda rows: rows.to_iterable_dataset()["image"], lambda rows: rows.to_iterable_dataset()["phrases"]),
        (lambda rows: KeyDataset(rows, "image"), lambda rows: KeyDataset(rows, "phrases")),
        (lambda rows: tuple(rows["image"]), lambda rows: rows["phrases"]),
    ],
    ids=["columns", "columns of a stream", "KeyDataset", "tuple"],
)
def test_columns(pipe, rows, expected, images, phrases):
    assert results(pipe(images(rows), phrases=phrases(rows), reject_threshold=0.0, batch_size=2)) == expected


def test_a_stream_without_end_is_read_as_needed(pipe, expected):
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield {"image": IMAGES[number % 3], "phrases": TEXTS[number % 3]}
            number += 1

    features = datasets.Features({"image": datasets.Image(), "phrases": datasets.Value("string")})
    stream = datasets.IterableDataset.from_generator(endless, features=features)
    found = pipe(stream["image"], phrases=stream["phrases"], reject_threshold=0.0, batch_size=2)
    assert results(next(found) for _ in range(3)) == expected
    assert len(taken) < 30


def test_a_data_set_of_several_splits_is_refused(pipe, rows):
    with pytest.raises(ValueError, match=r"\['train'\] was given. It needs 'image'"):
        pipe(datasets.DatasetDict({"train": rows}), phrases=["a"])
