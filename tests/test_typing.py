"""What type checkers and editors know about the package, found by one that runs in a process of its own."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import reasonseg


ROOT = Path(__file__).parents[1]
PACKAGE_DIRS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
    "package-dir"
]
FACTORIES = [name for name in reasonseg.__all__ if hasattr(getattr(reasonseg, name), "from_pretrained")]

# What the README shows, with the types a user relies on; lines marked so are mistakes that must be found.
USER_SCRIPT = """
from pathlib import Path
from typing import assert_type

import numpy as np
from PIL import Image

import reasonseg

model = reasonseg.GsvaForReasoningSegmentation.from_pretrained("repo")
processor = reasonseg.GsvaProcessor.from_pretrained("repo")
image = Image.new("RGB", (8, 8))
inputs = processor(images=image, phrases=[["a cup"]], return_tensors="pt").to(model.device)
output = model.generate_with_masks(**inputs, max_new_tokens=16)
result = processor.post_process_segmentation(output, inputs)[0]
assert_type(result, reasonseg.SegmentationResult)
for segment in result.segments:
    assert_type(segment, reasonseg.Segment)
    assert_type(segment.label, str | None)
    segment.mask.sum()  # wrong
    if segment.mask is not None:
        np.asarray(segment.mask).sum()
    assert_type(segment.box_xyxy, tuple[int, int, int, int] | None)
    segment.lable  # wrong
result.overlay(image).save("overlay.png")
len(result.text)

prompts = [reasonseg.VisualPrompt("rectangle", box_xyxy=(20, 30, 70, 90))]
reasonseg.draw_visual_prompts(image, prompts).save("prompted.png")
reasonseg.VisualPrompt("rectangle", box=(20, 30, 70, 90))  # wrong
reasonseg.VipLlavaProcessor.from_pretrained("repo")(image, "What is <bbox0>?", visual_prompts=prompts)

masked = reasonseg.IvmProcessor.from_pretrained("repo").post_process_masking(output, inputs, [image])[0]
assert_type(masked, reasonseg.MaskedImage)
grounded = reasonseg.AttendAndSegmentProcessor.from_pretrained("repo").post_process_segmentation(output, inputs)[0]
assert_type(grounded, reasonseg.PhraseSegmentationResult)

report = reasonseg.convert_lisa("LISA-7B-v1", vision_tower="clip", out=Path("out"))
assert_type(report.out, Path)
reasonseg.convert_lisa("LISA-7B-v1", out="out")  # wrong
reasonseg.convert_lisa("LISA-7B-v1", vision_tower="clip", out="out", dtype="float16", card="lisa-7b-v1")
reasonseg.convert_gsva(3, base="llava", out="out")  # wrong
try:
    reasonseg.register()
except reasonseg.ConversionError as error:
    assert_type(error.cause, str)
config = reasonseg.LisaConfig(seg_token_id=3)
assert_type(config.seg_token_id, int | None)
assert_type(reasonseg.EMBEDDED_MODEL, Path)
len(reasonseg.__version__)
reasonseg.Lisa  # wrong
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The packages as a wheel lays them out; a checker does not follow what makes a checkout importable."""
    if importlib.util.find_spec("ty") is None:
        pytest.skip("ty is not installed; `pip install .[dev]` has it.")
    site = tmp_path_factory.mktemp("site")
    for package, folder in PACKAGE_DIRS.items():
        target = site.joinpath(*package.split("."))
        target.mkdir(parents=True, exist_ok=True)
        for file in [*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("py.typed")]:
            shutil.copy(file, target)
    return site


def wrong_lines(site: Path, script: str) -> dict[int, str]:
    """Return what the checker says about a script, by the number of the line."""
    file = site.parent / "script.py"
    file.write_text(script, encoding="utf-8")
    options = ["--python", sys.prefix, "--extra-search-path", str(site), "--output-format", "concise"]
    command = [sys.executable, "-m", "ty", "check", *options, file.name]
    run = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=300)
    assert run.returncode in (0, 1), run.stdout + run.stderr  # 1: it found something
    return {int(number): said for number, said in re.findall(r"^script\.py:(\d+):\S* (error.*)$", run.stdout, re.M)}


@pytest.mark.slow
def test_a_user_s_script_is_right_where_it_is_right(site):
    lines = USER_SCRIPT.splitlines()
    expected = {number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")}
    found = wrong_lines(site, USER_SCRIPT)
    assert found.keys() == expected, found


@pytest.mark.slow
def test_every_public_name_has_a_type_of_its_own(site):
    """None is `Any`, which could be assigned to everything; what loads a checkpoint gives an object of its class."""
    names = [name for name in reasonseg.__all__ if name != "__version__"]
    script = "import reasonseg\n" + "".join(
        f"x{place}: bytes = reasonseg.{name}\n" for place, name in enumerate(names)
    )
    found = wrong_lines(site, script)
    assert [name for number, name in enumerate(names, start=2) if number not in found] == []
    assert len(FACTORIES) >= 20
    script = "import reasonseg\nfrom typing import assert_type\n" + "".join(
        f"assert_type(reasonseg.{name}.from_pretrained('x'), reasonseg.{name})\n" for name in FACTORIES
    )
    assert wrong_lines(site, script) == {}


def test_what_is_imported_for_checkers_is_what_is_imported_on_first_use():
    tree = ast.parse((ROOT / "reasonseg" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    static = {}
    for statement in block.body:
        for alias in statement.names:
            assert alias.asname == alias.name, f"Write `import {alias.name} as {alias.name}`, else it is not public."
            static[alias.name] = f"reasonseg.{statement.module}"
    assert static == reasonseg._public_names()
    assert set(static) == set(reasonseg.__all__) - {"__version__", "register"}
