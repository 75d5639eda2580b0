"""The rehearsal at toy size: what is timed gives what the original's way gives, and every number is there."""

import pytest
import torch

from benchmarks import full_size_inference as benchmark
from benchmarks.own_process import Finished
from reasonseg.loading import import_object


@pytest.fixture(scope="module")
def model(lisa_repo):
    return benchmark.load(str(lisa_repo), "float32", "float32")[0]


@pytest.mark.slow
@torch.no_grad()
def test_both_ways_draw_the_same_masks(model):
    view = benchmark.random_view(model)
    original = benchmark.OriginalWay(model, view)
    ours = benchmark.masks_of_phrases(model, view, [1, 1])
    for ids, masks in zip(benchmark.expression_ids(model, [1, 1]), ours, strict=True):
        torch.testing.assert_close(masks, original.masks_of(ids[None]), atol=1e-4, rtol=1e-4)
    assert {part: len(times) for part, times in original.seconds.items()} == {"read": 2, "encode": 2, "decode": 2}
    (together,) = benchmark.masks_of_phrases(model, view, [3])
    torch.testing.assert_close(together, original.masks_of(benchmark.expression_ids(model, [3])), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_both_ways_write_the_same_answer(model):
    view = benchmark.random_view(model)
    sequences, (masks,) = benchmark.write_answer(model, view)
    ids = benchmark.question_ids(model)
    torch.testing.assert_close(sequences, benchmark.OriginalWay(model, view).write(ids, benchmark.TOKENS))
    answer = sequences[0, ids.shape[1] :]
    assert len(answer) == benchmark.TOKENS
    assert (answer == model.config.seg_token_id).nonzero()[:, 0].tolist() == list(benchmark.SEG_STEPS)
    assert len(masks) == 2
    assert not torch.equal(*masks)


@pytest.mark.slow
def test_the_whole_rehearsal(monkeypatch, tmp_path):
    def in_this_process(reference, **arguments):
        return Finished(import_object(reference)(**arguments), wall_s=1.0, cpu_s=1.0, peak_rss=10**9)

    monkeypatch.setattr(benchmark, "run_alone", in_this_process)
    rows = list(benchmark.measurements("tiny", baseline_phrases=1, baseline_steps=2, folder=str(tmp_path)))
    assert [row.what.removeprefix("toy LISA: ") for row in rows] == [
        "conversion",
        "conversion, peak memory, against the checkpoint's size",
        "loading, weights mapped from files",
        "loading until all weights are in memory, against torch.load",
        "masks of 5 phrases in one pass (baseline scaled from 1 of 5)",
        "answer of 16 tokens with 2 masks (baseline scaled from 2 of 16)",
        "segmenter's encoder, against float32",
        "peak memory",
        "memory that is not mapped from files",
    ]
    assert all(row.ratio > 0 for row in [rows[1], *rows[3:]])
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]  # the checkpoint is deleted, the repository kept
