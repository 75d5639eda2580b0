"""The benchmarks of LISA and GSVA from the data root to the files of a run, with the recorded tiny models."""

import copy
import functools
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor, SamModel

from reasonseg.evaluation.image_results import ImageResult, ImageResults, ImageResultsError
from reasonseg.evaluation.metrics import numbers_of
from reasonseg.evaluation.referring_benchmarks import DATA_SETS, PROTOCOLS, AskedImages, Rules
from reasonseg.evaluation.referring_segmentation import LoadedImage, answer_images, rules_for, score_image
from reasonseg.evaluation.registry import BENCHMARKS, EvaluationOptions, UnknownBenchmarkError
from reasonseg.evaluation.report import write_report
from reasonseg.processing.segments import mask_to_rle
from tests.support import forked_runs, recorded_sa2va
from tests.support.recorded_data_sets import DATA_ROOT, recorded, recorded_arrays
from tests.support.tiny import randomize


SIDE = 256


@dataclass(frozen=True)
class Loaded(EvaluationOptions):
    """Options whose model is in memory already."""

    pair: Any = None

    def load_processor(self):
        return self.pair[1]

    def load_model(self, dtype: str = "auto"):
        return self.pair[0]


@pytest.fixture(scope="module")
def pairs(talking_lisa_repo, gsva_repo):
    """Model and processor by system; this LISA writes `[SEG]` by itself."""
    return {name: with_small_segmenter(repo) for name, repo in (("lisa", talking_lisa_repo), ("gsva", gsva_repo))}


def with_small_segmenter(repo):
    """A model that sees an image as 16 x 16 patches where it draws, not 64 x 64."""
    model, processor = AutoModel.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    config = copy.deepcopy(model.config.segmenter_config)
    for part in (config.vision_config, config.prompt_encoder_config):
        part.image_size = SIDE
    config.prompt_encoder_config.image_embedding_size = SIDE // 16
    model.segmenter, model.config.segmenter_config = randomize(SamModel(config)), config
    processor.image_processor.segmenter_size = {"longest_edge": SIDE}
    return model.eval(), processor


def evaluated(pair, out: Path, data_set: str, protocol: str, **options: Any):
    given = {"masks": "yes", "resamples": "20", **options.pop("given", {})}
    options = Loaded(
        dataset=data_set,
        out=out,
        model="tiny",
        data=DATA_ROOT,
        protocol=protocol,
        pair=pair,
        max_new_tokens=options.pop("max_new_tokens", 3),
        given=given,
        **options,
    )
    return BENCHMARKS[data_set].evaluate(options)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("system", ["lisa", "gsva"])
def test_every_benchmark_runs_by_every_protocol(system, data_set, pairs, tmp_path):
    for protocol in PROTOCOLS:
        out = tmp_path / protocol
        if system == "lisa" and protocol == "paper" and data_set in ("grefcoco", "refzom"):
            with pytest.raises(UnknownBenchmarkError, match=r"LISA has no evaluation on .* --protocol free or fixed"):
                evaluated(pairs[system], out, data_set, protocol)
            continue
        outcome = evaluated(pairs[system], out, data_set, protocol, limit=2)
        result, images = outcome.result, lines(out)
        expressions = [one for image in images for one in image["expressions"]]
        assert len(images) == outcome.about["images"] <= 2
        assert result.overall["masks"] == outcome.about["expressions"] == len(expressions)
        assert result.overall["giou"] == pytest.approx(np.mean([one["iou"] for one in expressions]), abs=1e-4)
        drawn, pixels = (sum(one[name] for one in expressions) for name in ("intersection", "union"))
        assert result.overall["ciou"] == pytest.approx(drawn / (pixels + 1e-10))
        low, high = result.overall["giou_interval"]
        assert 0 <= low <= result.overall["giou"] + 1e-9 <= high + 2e-9 <= 1 + 2e-9
        assert (protocol == "paper") <= (not result.mends)
        assert set(result.by_type) <= {"short", "long"}
        assert bool(result.by_type) == (data_set == "reasonseg")
        written = json.loads(write_report(result, out, outcome.about).read_text(encoding="utf-8"))
        assert written["mends"] == result.mends
        assert (out / "cases.png").is_file()
        assert (out / "model-index.yaml").is_file()


def test_numbers_do_not_depend_on_the_batch(pairs, tmp_path):
    numbers = []
    for batch_size in (1, 8):
        evaluated(pairs["gsva"], tmp_path / str(batch_size), "grefcoco", "paper", batch_size=batch_size)
        stored = [ImageResult.from_line(line) for line in lines(tmp_path / str(batch_size))]
        numbers.append(numbers_of(np.stack([one.sums(True) for one in stored]).sum(0)))
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)


def test_an_image_is_encoded_once_for_all_its_expressions(pairs, monkeypatch):
    model, processor = pairs["lisa"]
    for protocol, batch_size in (("paper", 8), ("paper", 2), ("free", 2)):
        rules = Rules("refcoco", protocol, "lisa")
        images = AskedImages(DATA_ROOT, "val", rules)
        loaded = LoadedImage.load(1, images[1])
        assert len(loaded.asked.texts) == 5
        encoders = [model.vlm.base_model.vision_tower, model.segmenter.vision_encoder]
        calls = []
        hooks = [
            module.register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
            for module in encoders
        ]
        (answers,) = answer_images(model, processor, [loaded], rules, batch_size, 3)
        for hook in hooks:
            hook.remove()
        assert [calls.count(module) for module in encoders] == [1, 1], (protocol, batch_size)
        apart = []
        for conversation in loaded.conversations:
            alone = LoadedImage(1, loaded.asked, loaded.image, loaded.targets, [conversation])
            apart.append(answer_images(model, processor, [alone], rules, 1, 3)[0][conversation.expressions[0]])
        together, single = (
            [one.iou for one in score_image(loaded.asked.texts, loaded.targets, given, rules)]
            for given in (answers, apart)
        )
        assert together == pytest.approx(single, abs=5e-3)


class KilledError(Exception):
    """The run ends here."""


def test_a_killed_run_resumes_to_the_same_numbers(pairs, tmp_path):
    whole = evaluated(pairs["lisa"], tmp_path / "whole", "reasonseg", "paper", batch_size=1)

    def stop(step: str, done: int, total: int) -> None:
        if done >= 3:
            raise KilledError

    with pytest.raises(KilledError):
        evaluated(pairs["lisa"], tmp_path / "cut", "reasonseg", "paper", batch_size=1, progress=stop)
    part = tmp_path / "cut" / "results.part0.jsonl"
    done = part.read_text(encoding="utf-8")
    part.write_text(done[:-20], encoding="utf-8")  # the last line was being written

    class Counting:
        """Counts what is asked."""

        def __init__(self, processor):
            self.processor, self.asked = processor, 0

        def __getattr__(self, name):
            return getattr(self.processor, name)

        def __call__(self, text, **kwargs):
            self.asked += len(text)
            return self.processor(text=text, **kwargs)

    Counting.__name__ = "LisaProcessor"
    processor = Counting(pairs["lisa"][1])
    resumed = evaluated((pairs["lisa"][0], processor), tmp_path / "cut", "reasonseg", "paper", batch_size=1)
    assert processor.asked == len(lines(tmp_path / "cut")) - 2 == 4
    assert resumed.result.to_dict() == whole.result.to_dict()
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert not part.exists()
    with pytest.raises(ImageResultsError, match="were made with protocol = 'paper'; now it is 'fixed'"):
        evaluated(pairs["lisa"], tmp_path / "cut", "reasonseg", "fixed")
    (tmp_path / "cut" / "settings.json").unlink()
    with pytest.raises(ImageResultsError, match="but not the settings"):
        ImageResults(tmp_path / "cut", {})


def run_as(process: int, port: int, pair, out: Path) -> None:
    """One of two processes, as `torchrun` starts them."""
    ranks = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()}, ACCELERATE_USE_CPU="true")
    PartialState._reset_state()
    assert PartialState(cpu=True).num_processes == 2
    evaluated(pair, out, "refcoco", "paper", split="test")


def test_two_processes_give_the_results_of_one(pairs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [functools.partial(run_as, process, port, pairs["lisa"], tmp_path / "two") for process in range(2)]
    assert [forked_runs.end(child) for child in list(map(forked_runs.start, run))] == [0, 0]
    evaluated(pairs["lisa"], tmp_path / "one", "refcoco", "paper", split="test")
    one, two = ([ImageResult.from_line(line) for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert [image.image for image in one] == [image.image for image in two]
    assert len(one) == 3, "the sampler's padding is not counted"
    numbers = [numbers_of(np.stack([image.sums(False) for image in each]).sum(0)) for each in (one, two)]
    assert numbers[1]["giou"] == pytest.approx(numbers[0]["giou"], abs=5e-3)
    assert not list((tmp_path / "two").glob("results.part*"))


def test_slots_that_are_missing_are_wrong(lisa_repo, tmp_path):
    result = evaluated(with_small_segmenter(lisa_repo), tmp_path, "refcoco", "free", max_new_tokens=1).result
    assert result.slots_missing == result.overall["masks"] == 7
    assert result.overall["giou"] == 0, "also of the expressions without a target"
    assert {one["decision"] for image in lines(tmp_path) for one in image["expressions"]} == {"no slot"}


def test_models_of_other_kinds_are_told_what_they_can_run(pairs):
    class IvmProcessor:
        seg_token, rej_token, answers_in_objects = None, None, False

    class ReasoningSegmentationProcessor:
        seg_token, rej_token, answers_in_objects = "[SEG]", None, False

    assert rules_for(IvmProcessor(), "refcoco", "free").original == "lisa"
    for protocol in ("paper", "fixed"):
        with pytest.raises(UnknownBenchmarkError, match=r"kind Ivm cannot run .* It can run --protocol free\."):
            rules_for(IvmProcessor(), "refcoco", protocol)
    assert rules_for(ReasoningSegmentationProcessor(), "refcoco", "fixed").original == "lisa"
    with pytest.raises(UnknownBenchmarkError, match=r"ReasoningSegmentation cannot run .* free or fixed\."):
        rules_for(ReasoningSegmentationProcessor(), "refcoco", "paper")
    assert rules_for(pairs["gsva"][1], "refzom", "paper") == Rules("refzom", "paper", "gsva")


def test_a_model_that_writes_nothing_answers_freely(small_ivm, tmp_path):
    pair = AutoModel.from_pretrained(small_ivm).eval(), AutoProcessor.from_pretrained(small_ivm)
    numbers = []
    for batch_size in (1, 8):
        out = tmp_path / str(batch_size)
        result = evaluated(pair, out, "refcoco", "free", limit=1, batch_size=batch_size).result
        assert result.slots_missing == 0
        numbers.append([one["iou"] for image in lines(out) for one in image["expressions"]])
    assert numbers[0] == pytest.approx(numbers[1], abs=5e-3)


def test_saved_predictions_get_the_recorded_numbers_without_a_model(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    record = recorded("lisa/reason_seg_metrics")["ReasonSeg|val"]
    names = sorted(path.stem for path in (DATA_ROOT / "reason_seg/ReasonSeg/val").glob("*.jpg"))
    for number, name in enumerate(names):
        np.save(folder / f"{name}.npy", recorded_arrays("lisa/reason_seg_metrics")[f"ReasonSeg|val/{number}/logits"])

    def scored(out: str, **given: str):
        options = EvaluationOptions(
            "reasonseg", tmp_path / out, data=DATA_ROOT, predictions=folder, protocol="paper", given=given
        )
        return BENCHMARKS["reasonseg"].evaluate(options).result

    numbers = scored("all", values="logits").overall
    for name, expected in record["result"].items():
        assert numbers[name] == pytest.approx(expected, abs=2e-6, rel=0)
    assert scored("gsva", values="logits", original="gsva").overall["ciou"] != pytest.approx(numbers["ciou"], abs=1e-3)
    (folder / f"{names[0]}.npy").unlink()
    with pytest.raises(ValueError, match=f"lacks 1 of 6 predictions: {names[0]}"):
        scored("missing", values="logits")
    assert scored("empty", values="logits", missing="empty").overall["giou"] != numbers["giou"]
    options = EvaluationOptions("reasonseg", tmp_path / "x", model="m", data=DATA_ROOT, predictions=folder)
    with pytest.raises(UnknownBenchmarkError, match="are scored without a model"):
        BENCHMARKS["reasonseg"].evaluate(options)


def test_predictions_of_expressions_are_numbered(tmp_path):
    folder, record = tmp_path / "masks", recorded("gsva/referring_metrics")["grefcoco|unc|val"]
    folder.mkdir()
    images = AskedImages(DATA_ROOT, "val", Rules("grefcoco", "paper", "gsva"))
    for number, item in enumerate(record["items"]):
        logits = recorded_arrays("gsva/referring_arrays")[f"predictions/grefcoco|unc|val/{number}/logits"]
        for expression, (mask, rejected) in enumerate(zip(logits >= 0, item["rejected"], strict=True)):
            stored = {**mask_to_rle(mask), "rejected": rejected}
            name = f"{images[number].name}_{expression}.json"
            (folder / name).write_text(json.dumps(stored), encoding="utf-8")
    options = EvaluationOptions("grefcoco", tmp_path / "out", data=DATA_ROOT, predictions=folder, protocol="paper")
    numbers = BENCHMARKS["grefcoco"].evaluate(options).result.overall
    for name, expected in record["result"].items():
        assert numbers[name] == pytest.approx(expected, abs=2e-6, rel=0)


def test_sa2va_writes_its_answers_and_all_of_their_masks_are_one():
    repo = recorded_sa2va.converted_repo("qwen3_vl")
    model, processor = AutoModel.from_pretrained(repo).eval(), AutoProcessor.from_pretrained(repo)
    model.generation_config.sequence_bias = {(model.config.seg_token_id,): 30.0}
    rules = rules_for(processor, "refcoco", "paper")
    assert (rules.original, rules.mends()) == ("sa2va", [])
    loaded = LoadedImage.load(0, AskedImages(DATA_ROOT, "val", rules)[0])
    loaded.conversations = loaded.conversations[:1]
    question = loaded.conversations[0].question
    assert question == f"<image>\n Please segment {loaded.asked.texts[0].strip().lower()} in this image."
    assert loaded.conversations[0].answer is None

    image = np.asarray(loaded.image)
    inputs = processor(images=[image], text=[question], return_tensors="pt")
    assert "<|vision_end|>\n Please segment" in inputs.rows[0].conversation
    output = model.generate_with_masks(**inputs, max_new_tokens=8, do_sample=False)
    masks = [segment.mask for segment in processor.post_process_segmentation(output, inputs)[0].segments]
    assert len(masks) > 1
    free = rules_for(processor, "refcoco", "free")
    assert "the first mask" in free.mends()[0]
    for way, expected in ((rules, np.any(masks, axis=0)), (free, masks[0])):
        answer = answer_images(model, processor, [loaded], way, 4, max_new_tokens=8)[0][0]
        assert answer.decision == "segmented"
        assert np.array_equal(answer.mask, expected)
    for data_set in ("reasonseg", "grefcoco"):
        with pytest.raises(UnknownBenchmarkError, match=f"Sa2VA has no evaluation on {data_set}.*free or fixed"):
            rules_for(processor, data_set, "paper")
