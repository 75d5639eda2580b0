"""A conversion that fails on another system's tensors says whose they are."""

import pytest

from reasonseg.conversion.convert_attend_and_segment import convert_attend_and_segment
from reasonseg.conversion.convert_difflmm import convert_difflmm
from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.convert_ivm import convert_ivm
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.convert_vip_llava import convert_vip_llava
from reasonseg.conversion.errors import ConversionError
from tests.support.originals import GSVA, LISA
from tests.support.parity_data import PARITY, difflmm_sources


IVM = PARITY / "ivm"
TOWER = LISA / "vision_tower"
GSVA_BIN, IVM_BIN = GSVA / "gsva-tiny.bin", IVM / "IVM-V1.0.bin"
BASE = GSVA / "base_llava"


@pytest.mark.parametrize(
    ("convert", "source", "options", "hint"),
    [
        (convert_lisa, GSVA_BIN, {"vision_tower": TOWER}, "also be GSVA's: then use `reasonseg convert gsva`"),
        (convert_lisa, GSVA_BIN, {"vision_tower": TOWER, "base": BASE}, "also be GSVA's"),
        (convert_gsva, LISA / "checkpoint", {"base": BASE}, "also be LISA's: then use `reasonseg convert lisa`"),
        (convert_lisa, IVM_BIN, {"vision_tower": TOWER, "base": BASE}, "are IVM's .*: use `reasonseg convert ivm`"),
        (convert_ivm, GSVA_BIN, {"base": IVM / "llava_base"}, "LISA's or GSVA's: use `reasonseg convert lisa` or"),
        (convert_gsva, TOWER, {"base": BASE}, "This is a CLIP model: it is passed as vision_tower="),
        (convert_vip_llava, LISA / "checkpoint", {}, "LISA's or GSVA's"),
        (
            convert_attend_and_segment,
            PARITY / "vip_llava" / "checkpoint" / "vip-llava-7b",
            {"sam": IVM / "sam_vit_h_4b8939.pth"},
            "are ViP-LLaVA's",
        ),
    ],
)
def test_the_other_system_is_named(convert, source, options, hint, tmp_path):
    with pytest.raises(ConversionError, match=hint):
        convert(source, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("repo", "title"), [("lisa_repo", "LISA"), ("ivm_repo", "IVM"), ("vip_llava_repo", "ViP-LLaVA")]
)
def test_a_converted_repository_is_recognised(repo, title, request, tmp_path):
    repo = request.getfixturevalue(repo)
    with pytest.raises(ConversionError, match=f"This is {title} as a repository that loads as it is"):
        convert_gsva(repo, base=BASE, vision_tower=TOWER, out=tmp_path / "out")


def test_nothing_is_added_where_the_source_is_right(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"never overwritten\.$"):
        convert_lisa(GSVA_BIN, vision_tower=TOWER, out=tmp_path / "full")
    with pytest.raises(ConversionError) as refused:
        convert_ivm(source=IVM_BIN, base=IVM / "llava_base", out=tmp_path / "out")  # without sam=
    assert refused.value.next_step == "Pass sam= with SAM's own file (sam_vit_h_4b8939.pth)."
    with pytest.raises(ConversionError, match=r"no such .*Check the path\.$"):
        convert_difflmm(**difflmm_sources() | {"source": tmp_path / "nowhere"}, out=tmp_path / "out")
    with pytest.raises(ConversionError, match=r"no such file"):
        convert_lisa(tmp_path / "nowhere", vision_tower=TOWER, out=tmp_path / "out")
