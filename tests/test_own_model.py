"""From annotations of LabelMe to a model that is better at them: the script of docs/your-own-model.md, whole."""

import importlib.util
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from reasonseg.data.annotation_formats import FORMATS, WritingOptions
from reasonseg.data.annotation_writing import write_annotations
from reasonseg.data.labelled_images import LabelledImage, LabelledObject
from reasonseg.processing.segments import mask_to_rle
from reasonseg.tabletop.scenes import draw_scene
from tests.support.hub_server import HubServer
from tests.support.installed import forked


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your-own-model.md"
# A word that the embedded model does not know, for what it knows by another.
LABEL = "the widget"
STEPS = (
    "max_steps=8",
    "learning_rate=5.0e-3",
    "warmup_steps=0",
    "per_device_train_batch_size=4",
    "gradient_accumulation_steps=1",
    "activation_checkpointing=false",
    "bf16=false",
    "use_cpu=true",
    "disable_tqdm=true",
)


def my_drawings(split: str, count: int):
    """Scenes with cups, which are called otherwise here."""
    scenes = (draw_scene(split, index) for index in range(10_000))
    for scene in scenes:
        cups = [place for place, thing in enumerate(scene.objects) if thing.kind == "cup"]
        if not cups:
            continue
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        objects = tuple(LabelledObject(LABEL, mask_to_rle(scene.mask(place))) for place in cups)
        yield LabelledImage(f"{scene.index}.png", scene.image.shape[:2], file.getvalue(), objects)
        count -= 1
        if not count:
            return


@pytest.fixture
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("my_model", ROOT / "examples" / "my_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_score_goes_up_on_drawings_of_ones_own(tmp_path, script, monkeypatch, capsys):
    mine = tmp_path / "my"
    for split, count in (("train", 32), ("test", 8)):
        labelled = my_drawings(split, count)
        write_annotations(FORMATS["labelme"], labelled, mine / split, WritingOptions(masks="polygons"))
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.count(LABEL) >= 32
    # of the recipe for LISA only what a model of this size and a machine without a GPU need otherwise
    changes = [
        r"trained=['vlm\..*embed_tokens\.', 'segmenter\.mask_decoder\.', 'seg_projector\.']",
        "mask_size=64",
        *(f"arguments.{change}" for change in STEPS),
    ]
    wording = ("--question=Where is {phrases}?", "--answer={items}.", "--item={phrase} {seg}")
    arguments = ["--train", mine / "train", "--test", mine / "test", "--model", "embedded"]
    arguments += ["--out", tmp_path / "mine", "--publish", "me/mine"]
    arguments += [f"--import-option={word}" for word in wording]
    arguments += [part for change in changes for part in ("--set", change)]
    with HubServer() as hub:
        monkeypatch.setattr(script, "run", lambda *words: forked(*words, **hub.environment))
        scores = script.main([str(part) for part in arguments])
        assert hub.repos["me/mine"].private
        assert script.main([str(part) for part in arguments[:-2]]) == scores, "what is there already is left out"
    assert scores["before"] < 0.1
    assert scores["after"] > 0.5
