"""The recorded checkpoints, converted once per test run."""

import pytest

from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.convert_lisa import convert_lisa
from tests.parity_data import PARITY


@pytest.fixture(scope="session")
def lisa_repo(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "lisa"
    convert_lisa(PARITY / "lisa" / "checkpoint", vision_tower=PARITY / "lisa" / "vision_tower", out=out)
    return out


@pytest.fixture(scope="session")
def gsva_repo(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "gsva"
    convert_gsva(
        PARITY / "gsva" / "gsva-tiny.bin",
        base=PARITY / "gsva" / "base_llava",
        vision_tower=PARITY / "gsva" / "vision_tower",
        lora_alpha=16,
        out=out,
    )
    return out
