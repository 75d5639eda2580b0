"""Settings and fixtures every test shares."""

import os


# Before torch and transformers are imported: no test may reach the network, and two workers must not fight over cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import random
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from reasonseg.conversion.convert_difflmm import convert_difflmm
from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.convert_ivm import convert_ivm
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.convert_vip_llava import convert_vip_llava
from tests.support.parity_data import PARITY, difflmm_sources, gsva_vision_tower
from tests.support.tabletop_masking import masking_model, masking_processor


SEED = 0

# Whenever a config becomes a field of another one it is first tried as a dict, and written out for a message that
# nobody reads: an eighth of what building models takes. No code here writes configs out by their `repr`.
PreTrainedConfig.__repr__ = lambda config: f"{type(config).__name__}(...)"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest test that is alone in its module comes first of those: no process waits for another's at the end."""
    items.sort(key=lambda item: item.path.name != "test_across_versions.py")


def pytest_collection_finish():
    """What was imported stays: looking for garbage in it, again and again, takes longer than many tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Before fixtures of any scope: what a test leaves to chance, as a model's first weights, is always the same."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def no_class_exists_twice():
    """`modeling` imported beside `reasonseg.modeling` would define every class a second time."""
    yield
    leaked = sorted(
        {"modeling", "processing", "conversion", "data", "training", "evaluation", "tabletop", "serving"}
        & sys.modules.keys()
    )
    assert not leaked, f"Imported by a bare name: {leaked}. Write `from reasonseg.{leaked[0]} import ...`."


@pytest.fixture(autouse=True)
def no_torch_setting_leaks():
    """A setting of the whole process that one test leaves behind changes what later tests compute."""
    before = torch_settings()
    yield
    assert torch_settings() == before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Reports travel between processes as UTF-8, which has no halves of characters; some tests print such names."""
    report = yield
    report.sections = [(title, _without_halves(text)) for title, text in report.sections]
    if report.failed and _without_halves(text := str(report.longrepr)) != text:
        report.longrepr = _without_halves(text)
    return report


def _without_halves(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def torch_settings() -> dict:
    return {
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(scope="session")
def lisa_repo(tmp_path_factory):
    """The recorded LISA checkpoint, converted."""
    out = tmp_path_factory.mktemp("converted") / "lisa"
    convert_lisa(PARITY / "lisa" / "checkpoint", vision_tower=PARITY / "lisa" / "vision_tower", out=out)
    return out


@pytest.fixture(scope="session")
def gsva_repo(tmp_path_factory):
    """The recorded GSVA checkpoint, converted."""
    out = tmp_path_factory.mktemp("converted") / "gsva"
    gsva = PARITY / "gsva"
    convert_gsva(gsva / "gsva-tiny.bin", base=gsva / "base_llava", vision_tower=gsva_vision_tower(), out=out)
    return out


@pytest.fixture(scope="session")
def ivm_repo(tmp_path_factory):
    """The recorded IVM checkpoint, converted."""
    out, ivm = tmp_path_factory.mktemp("converted") / "ivm", PARITY / "ivm"
    convert_ivm(ivm / "IVM-V1.0.bin", base=ivm / "llava_base", sam=ivm / "sam_vit_h_4b8939.pth", out=out)
    return out


@pytest.fixture(scope="session")
def small_ivm(tmp_path_factory):
    """A small untrained IVM; its heat-maps span enough for thresholds to matter."""
    out = tmp_path_factory.mktemp("untrained") / "ivm"
    processor = masking_processor()
    model = masking_model(processor, 0, width=16)
    with torch.no_grad():
        model.segmenter.mask_decoder.output_hypernetworks_mlps.proj_out.weight.mul_(8)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def difflmm_repo(tmp_path_factory):
    """The recorded DiffLMM, converted in float32."""
    pytest.importorskip("diffusers", reason="DiffLMM needs diffusers; `pip install .[dev]` has it.")
    out = tmp_path_factory.mktemp("converted") / "difflmm"
    convert_difflmm(**difflmm_sources(), out=out, dtype="float32")
    return out


@pytest.fixture(scope="session")
def talking_lisa_repo(lisa_repo, tmp_path_factory):
    """The recorded LISA variant that writes `[SEG]` by itself."""
    from transformers import AutoModel, AutoProcessor

    out = tmp_path_factory.mktemp("converted") / "talking"
    model = AutoModel.from_pretrained(lisa_repo)
    (head,) = load_file(PARITY / "lisa" / "variant_segbias" / "lm_head.safetensors").values()
    with torch.no_grad():
        model.vlm.lm_head.weight[: len(head)] = head
    model.save_pretrained(out, save_original_format=False)
    AutoProcessor.from_pretrained(lisa_repo).save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def vip_llava_repo(tmp_path_factory):
    """The recorded ViP-LLaVA on Vicuna, converted."""
    return _converted_vip_llava("checkpoint/vip-llava-7b", tmp_path_factory)


@pytest.fixture(scope="session")
def vip_llava_phi_3_repo(tmp_path_factory):
    """The recorded ViP-LLaVA on Phi-3, converted."""
    return _converted_vip_llava("phi3/vip-llava-phi-3", tmp_path_factory)


def _converted_vip_llava(checkpoint, tmp_path_factory):
    recorded = PARITY / "vip_llava"
    out = tmp_path_factory.mktemp("converted") / checkpoint.rpartition("/")[2]
    # the recordings were made in float32; the stored halves are exact
    tower = recorded / "checkpoint" / "clip-vit-large-patch14-336"
    convert_vip_llava(recorded / checkpoint, vision_tower=tower, out=out, dtype="float32")
    return out
