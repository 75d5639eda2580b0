"""Checkpoints that several tests of this folder run."""

import pytest
import torch

from tests.support.tabletop_masking import masking_model, masking_processor


@pytest.fixture(scope="session")
def ivm_repo(tmp_path_factory):
    """A small untrained IVM; its heat-maps span enough for thresholds to matter."""
    out = tmp_path_factory.mktemp("untrained") / "ivm"
    processor = masking_processor()
    model = masking_model(processor, 0, width=16)
    with torch.no_grad():
        model.segmenter.mask_decoder.output_hypernetworks_mlps.proj_out.weight.mul_(8)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out
