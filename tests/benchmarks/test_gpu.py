"""The benchmark of an accelerator, at toy size on whatever there is here."""

import json

import pytest
import torch

from benchmarks import gpu


@pytest.fixture(scope="module")
def tiny():
    return gpu.random_lisa(gpu.SIZES["tiny"], torch.device("cpu"))


def test_the_model_is_what_loading_would_make(tiny):
    assert tiny.dtype is torch.bfloat16
    assert gpu.segmenter_adapter(tiny.segmenter).encoder_dtype is torch.bfloat16
    kept = [tiny.segmenter.mask_decoder, tiny.segmenter.vision_encoder.layers[0].layer_norm1, tiny.seg_projector]
    assert {weight.dtype for module in kept for weight in module.parameters()} == {torch.float32}
    text = gpu.SIZES["tiny"]["text"]
    width, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    per_layer = 4 * width**2 + 3 * width * inner + 2 * width
    assert gpu.bytes_per_token(tiny) == 2 * (layers * per_layer + width * gpu.SIZES["tiny"]["vocab_size"])


def test_all_parts_are_measured_and_one_that_fails_is_named(monkeypatch, tmp_path):
    def no_room(self):
        raise torch.OutOfMemoryError("out of memory\nand many more lines")

    monkeypatch.setattr(gpu.Parts, "encode", no_room)
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu, "DECODED", 8)
    monkeypatch.setattr(gpu.Report, "end_in", lambda *_: None)  # it would end the tests
    assert gpu.main(["--size", "tiny", "--out", str(tmp_path / "gpu.json")]) == 1
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert report["problem"] == "encoder: OutOfMemoryError: out of memory"
    rows = {row["what"].removeprefix("toy model: "): row for row in report["rows"]}
    for title in (
        "bandwidth of a copy",
        "decoding at batch 1, dynamic cache, against the bandwidth's limit",
        "decoding at batch 1, static cache, against the bandwidth's limit",
        "forced answers, 2 images at once, against one at a time",
        "free answers, 2 images at once, against one at a time",
    ):
        assert rows[title]["ours"] > 0, title
    assert 0 < rows["decoding at batch 1, dynamic cache, against the bandwidth's limit"]["ratio"] < 1
    assert rows["free answers, 1 image at once"]["ratio"] is None


def test_no_part_is_begun_when_the_time_is_over():
    with pytest.raises(RuntimeError, match=r"copy: not begun after 0 minutes; .*free, batch 32: not begun"):
        list(gpu.measurements("tiny", minutes=0))
