"""`examples/label_dataset.py` on a data set of this machine, and what its first lines say."""

import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from reasonseg.model_names import EMBEDDED_MODEL
from tests.support.forked_python import fork_server


datasets = pytest.importorskip("datasets", reason="The extra `data` (pip install datasets) is not installed.")
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "label_dataset.py"


def test_its_dependencies_are_the_project_s():
    inline = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", inline, flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["requires-python"] == project["requires-python"]
    assert set(metadata["dependencies"]) <= {*project["dependencies"], *project["optional-dependencies"]["data"]}


def test_it_labels_a_folder_and_goes_on(tmp_path):
    images = [
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8))
        for number in range(5)
    ]
    features = datasets.Features({"photo": datasets.Image(), "name": datasets.Value("string")})
    columns = {"photo": images, "name": [f"cup {number}" for number in range(5)]}
    (tmp_path / "in").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "in" / "train.parquet")
    out = tmp_path / "out"
    arguments = ("--model", EMBEDDED_MODEL, "--image-column", "photo", "--phrase", "the red cup", "--phrase", "a dog")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    def run(source: Path = tmp_path / "in", code: int = 0) -> list[str]:
        done = fork_server(env=env).run(SCRIPT, source, out, *arguments, "--rows-per-file", 2, env=env)
        assert done.returncode == code, done.stderr
        return re.findall(r"(data/\S+), (\d+) rows|(has a column '.+)", done.stdout + done.stderr)

    files = [(f"data/train-00000-of-00001-{number:05}.parquet", rows, "") for number, rows in enumerate("221")]
    assert run() == files
    assert run(out, code=2) == [("", "", "has a column 'objects' already, which would be lost; rename it")]
    (out / files[1][0]).unlink()
    assert run() == files[1:2]
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["name"][:] == columns["name"]
    for row, image in zip(loaded, images, strict=True):
        np.testing.assert_array_equal(row["photo"], image)
        assert [found["label"] for found in row["objects"]] == ["the red cup", "a dog"]
        for found in row["objects"]:
            assert found["rejected"] == (found["rle"] is None)
            assert found["rle"] is None or coco_mask.decode(found["rle"]).shape == (40, 60)
            assert row["answer"][slice(*found["span"])] in ("[SEG]", "[REJ]")
