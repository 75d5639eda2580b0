"""Models that write coordinates from their parts: files, formats by name and type, adapters, and the whole way."""

import copy
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen3VLProcessor,
    pipeline,
)
from transformers.models.smolvlm import processing_smolvlm
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.cli.segment import Segmenter, Segmenting, Settings
from reasonseg.conversion.compose import check_parts, compose
from reasonseg.conversion.compose_coordinates import _named_format
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.systems import COORDINATES
from reasonseg.conversion.verify import verify_repository
from reasonseg.evaluation.reasoning_segmentation import Question, evaluate, run_questions
from reasonseg.evaluation.referring_segmentation import rules_for
from reasonseg.modeling.outputs import answer_length
from reasonseg.processing.composed_processor import without_videos
from reasonseg.processing.coordinate_answers import NOT_JSON
from reasonseg.processing.coordinate_formats import COORDINATE_FORMATS
from reasonseg.serving.client import read_answer
from reasonseg.serving.conversation import Conversation
from reasonseg.serving.segment_requests import segment_answer
from tests.evaluation.test_referring_segmentation import Loaded
from tests.processing.test_processing_reasoning_segmentation import IMAGES
from tests.support import tiny
from tests.support.originals import change_json, weights
from tests.support.parity_data import PARITY
from tests.support.parts import write_llava_next, write_sam, write_sam2


ANSWER = '[{"bbox_2d": [90, 100, 600, 700], "label": "cup"}, {"bbox_2d": [400, 50, 900, 800], "label": "dog"}]'


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return {"vlm": write_llava_next(folder / "next"), "segmenter": write_sam2(folder / "sam2")}


@pytest.fixture(scope="module")
def repo(parts, tmp_path_factory):
    made = {"system": "coordinates", "coordinate_format": "qwen3_vl", **parts}
    return compose(made, tmp_path_factory.mktemp("composed") / "repo").out


@pytest.fixture(scope="module")
def loaded(repo):
    return AutoModel.from_pretrained(repo).eval(), AutoProcessor.from_pretrained(repo)


def dictation(processor, *answers: str) -> tiny.Dictation:
    ids = [processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    return tiny.Dictation(ids, eos_token_id=2)


def test_the_repository_is_complete_and_its_parts_unchanged(repo, parts):
    assert verify_repository(repo).problems == []
    found, stock = weights(repo), AutoModelForImageTextToText.from_pretrained(parts["vlm"]).state_dict()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(found[f"vlm.{name}"], stock[name])
    generation = json.loads((repo / "generation_config.json").read_text(encoding="utf-8"))
    assert (generation["do_sample"], generation["max_new_tokens"]) == (False, 1024)
    view = json.loads((repo / "processor_config.json").read_text(encoding="utf-8"))["segmenter_image_processor"]
    assert (view["mask_resizing"], view["resize_in_float"]) == ("straight", True)
    card = (repo / "README.md").read_text(encoding="utf-8")
    assert "next (vision-language model) and sam2 (segmenter)" in card
    assert "learned nothing" not in card


def test_a_padded_view_is_resized_as_sam_does(parts, tmp_path):
    made = {"system": "coordinates", "coordinate_format": "internvl", "vlm": parts["vlm"]}
    out = compose({**made, "segmenter": write_sam(tmp_path / "sam.pth")}, tmp_path / "repo").out
    view = json.loads((out / "processor_config.json").read_text(encoding="utf-8"))["segmenter_image_processor"]
    assert view["mask_resizing"] == "through_view"
    assert not view.get("resize_in_float")


@pytest.mark.parametrize(
    ("vlm", "adapter", "model_type", "expected"),
    [
        ("Qwen/Qwen3-VL-2B-Instruct", None, "qwen3_vl", "qwen3_vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", None, "qwen2_5_vl", "qwen2_5_vl"),
        ("Ricky06662/VisionReasoner-7B", None, "qwen2_5_vl", "vision_reasoner"),
        ("/models/Seg-Zero-7B-Best-on-ReasonSegTest", None, "qwen2_5_vl", "seg_zero"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "sj9909/StAR-7B/huggingface/adapter.safetensors", "qwen2_5_vl", "star"),
        ("Qwen/Qwen3-VL-8B-Instruct", "sj9909/StAR-8B", "qwen3_vl", "star_qwen3"),
        ("OpenGVLab/InternVL3-1B-hf", None, "internvl", "internvl"),
        # Only the model's own name counts, and not that of a folder it lies in.
        ("/models/seg-zero/Qwen3-VL-2B-Instruct", None, "qwen3_vl", "qwen3_vl"),
        ("/VisionReasoner/models--Qwen--Qwen2.5-VL-3B/snapshots/" + "a" * 40, None, "qwen2_5_vl", "qwen2_5_vl"),
        ("/hub/models--sj9909--StAR-8B/snapshots/" + "a" * 40, None, "qwen3_vl", "star_qwen3"),
        ("Qwen/Qwen3-VL-8B-Instruct", "/seg-zero/StAR-8B/huggingface", "qwen3_vl", "star_qwen3"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "/seg-zero/StAR-7B/lora_adapter", "qwen2_5_vl", "star"),
        ("star-7b/Qwen2.5-VL-7B-Instruct", None, "qwen2_5_vl", "qwen2_5_vl"),
    ],
)
def test_how_a_model_writes_is_told_by_its_name_or_type(vlm, adapter, model_type, expected):
    assert _named_format(None, adapter, vlm, model_type) == expected
    assert _named_format("molmo", adapter, vlm, model_type) == "molmo"


def test_a_model_of_which_nothing_is_known_needs_a_format(parts, tmp_path):
    with pytest.raises(ConversionError, match="not known how models of type 'llava_next' write coordinates"):
        compose({"system": "coordinates", **parts}, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    with pytest.raises(ConversionError, match="coordinate_format is 'yaml'; allowed are"):
        check_parts({"system": "coordinates", "coordinate_format": "yaml", **parts})
    code = {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration_internvl_chat.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(code), encoding="utf-8")
    with pytest.raises(ConversionError, match=r"'internvl_chat' are none that transformers has.*InternVL3-1B-hf"):
        compose({"system": "coordinates", **parts, "vlm": tmp_path}, tmp_path / "repo")
    option = next(one for one in COORDINATES.composition.options if one.name == "coordinate_format")
    assert list(option.kind.__args__) == list(COORDINATE_FORMATS)


def test_a_model_without_a_chat_template_is_refused(parts, tmp_path):
    made = {**parts, "vlm": PARITY / "ivm" / "llava_base", "coordinate_format": "qwen3_vl"}
    with pytest.raises(ConversionError, match="no chat template, with which it could be asked"):
        compose({"system": "coordinates", **made}, tmp_path / "repo")


def write_adapter(folder, rank=2, **config):
    """As PEFT saves one, in the spelling of checkpoints; StAR's file is such."""
    generator = torch.Generator().manual_seed(5)
    layer = "base_model.model.model.language_model.layers.1.self_attn.v_proj"
    state = {
        f"{layer}.lora_A.weight": torch.randn(rank, 32, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(16, rank, generator=generator),
    }
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors")
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, state.values()


def test_an_adapter_is_merged(parts, repo, tmp_path):
    (tmp_path / "StAR-7B").mkdir()
    folder, (lora_a, lora_b) = write_adapter(
        tmp_path / "StAR-7B" / "lora_adapter", r=2, lora_alpha=8, peft_type="LORA"
    )
    made = {"system": "coordinates", **parts}
    out = compose({**made, "adapter": folder.parent}, tmp_path / "repo").out
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["coordinate_format"] == "star"
    name = "vlm.model.language_model.layers.1.self_attn.v_proj.weight"
    merged, before = weights(out), weights(repo)
    torch.testing.assert_close(merged[name], before[name] + 8 / 2 * (lora_b @ lora_a))
    assert all(torch.equal(value, before[key]) for key, value in merged.items() if key != name)
    report = verify_repository(out, against={"checkpoint": parts["vlm"], "adapter": folder.parent})
    assert report.problems == []
    assert sum(report.compared.values()) == sum(key.startswith("vlm.") for key in merged)
    assert report.not_compared.keys() == {"SAM file"}
    # Given a file alone, somebody has to say alpha.
    (folder / "adapter_config.json").unlink()
    file = folder / "adapter_model.safetensors"
    with pytest.raises(ConversionError, match=r"no adapter_config\.json beside the adapter"):
        compose({**made, "adapter": file}, tmp_path / "other")
    again = compose({**made, "adapter": file, "lora_alpha": 4}, tmp_path / "other").out
    torch.testing.assert_close(weights(again)[name], before[name] + 4 / 2 * (lora_b @ lora_a))


def test_adapters_that_do_not_fit(parts, tmp_path):
    for name in ("huggingface", "lora_adapter"):
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / "adapter_model.safetensors").write_bytes(b"")
    made = {"system": "coordinates", "coordinate_format": "star", **parts}
    with pytest.raises(ConversionError, match=r"several adapters, in huggingface, lora_adapter\. .*both/huggingface/"):
        compose({**made, "adapter": tmp_path / "both"}, tmp_path / "repo")
    folder, _ = write_adapter(tmp_path / "other")
    for names, message in (
        ({"visual.blocks.0.weight": torch.ones(2, 2)}, "no matrices of LoRA"),
        ({"base_model.model.model.nothing.lora_A.weight": torch.ones(2, 2)}, "no parameter"),
    ):
        save_file(names, folder / "adapter_model.safetensors")
        with pytest.raises(ConversionError, match=message):
            compose({**made, "adapter": folder, "lora_alpha": 4}, tmp_path / "repo")
    with pytest.raises(ConversionError, match="lora_alpha= is given without adapter="):
        compose({**made, "lora_alpha": 4}, tmp_path / "repo")


def test_the_pipeline_answers_with_what_is_written(loaded):
    model, processor = loaded
    pipe = pipeline("reasoning-segmentation", model=model, processor=processor)
    asked = {"logits_processor": [dictation(processor, ANSWER)]}
    written = pipe(IMAGES[0], text="What is there?", **asked)
    assert [segment["label"] for segment in written["segments"]] == ["cup", "dog"]
    assert all(written["generated_text"][slice(*one["span"])].startswith("{") for one in written["segments"])
    assert written["segments"][0]["mask"].size == IMAGES[0].size
    assert [one["repairs"] for one in written["segments"]] == [[], []]
    width, height = IMAGES[0].size
    assert written["segments"][0]["prompt_box_xyxy"] == pytest.approx(
        [0.09 * width, 0.1 * height, 0.6 * width, 0.7 * height]
    )
    # Both orders, in one batch and alone.
    nothing = pipe(IMAGES[:2], phrases=["cup", "dog"], batch_size=2, max_new_tokens=3)
    assert [[one["label"] for one in row["segments"]] for row in nothing] == [["cup", "dog"]] * 2
    assert all(one["rejected"] for row in nothing for one in row["segments"])
    assert all(row["problems"] == ["the answer holds no coordinates"] for row in nothing)
    asked = {"logits_processor": [dictation(processor, ANSWER)]}
    *_, last = pipe.stream(IMAGES[0], "What is there?", **asked)
    assert [segment.label for segment in last.result.segments] == ["cup", "dog"]


def test_a_conversation_is_worded_and_goes_on(loaded):
    model, processor = loaded
    conversation = Conversation(model, processor, IMAGES[0])
    first = conversation.ask("What is there?", logits_processor=[dictation(processor, ANSWER)])
    second = conversation.ask("And else?", logits_processor=[dictation(processor, "[]")])
    assert (len(first.segments), len(second.segments)) == (2, 0)
    assert [turn.question for turn in conversation.turns] == ["What is there?", "And else?"]
    model.generation_config.max_new_tokens = 3
    assert conversation.segment("cup").segments[0].label == "cup"
    model.generation_config.max_new_tokens = 1024


def test_lines_and_servers_say_what_was_put_right(loaded, monkeypatch, tmp_path):
    """Answers are as long as the model's configuration allows, unless somebody gives a number."""
    model, processor = loaded
    write, lengths = model.generate_with_masks, []

    def dictated(**kwargs):
        lengths.append(kwargs["max_new_tokens"])
        said = ANSWER.replace('"', "'")
        return write(**kwargs, logits_processor=[dictation(processor, said)])

    monkeypatch.setattr(model, "generate_with_masks", dictated)
    IMAGES[0].save(tmp_path / "a.png")
    for asked in ({"text": "What?"}, {"phrases": ["cup", "dog"]}, {"text": "What?", "max_new_tokens": 200}):
        settings = {"text": None, "phrases": [], "max_new_tokens": None, **asked}
        command = Segmenter(
            Settings("m", None, **settings, mask_threshold=0.0, reject_threshold=None, dtype="auto"), *loaded
        )
        (result,) = command.compute(command.prepare([IMAGES[0]]))
        folder = SimpleNamespace(request={})
        record, _ = Segmenting(command, folder, {tmp_path / "a.png": "a"}).draw(tmp_path / "a.png", IMAGES[0], result)
        received = read_answer(json.loads(json.dumps(segment_answer(result, "rle"))), IMAGES[0])
        for one, segment, again in zip(record["segments"], result.segments, received.segments, strict=True):
            assert one["repairs"] == [NOT_JSON]
            assert one["prompt_box_xyxy"] == list(segment.prompt_box_xyxy)
            assert again.remarks == segment.remarks
    assert lengths == [1024, 1024, 200]
    assert answer_length(SimpleNamespace(), None) == 256


def test_answers_vote_and_a_seed_gives_them_again(repo, loaded, monkeypatch, tmp_path):
    for number, picture in enumerate(IMAGES[:2]):
        picture.save(tmp_path / f"{number}.png")
    folder = ("segment", tmp_path / "0.png", tmp_path / "1.png", "What?", "--model", repo, "--max-new-tokens", "8")

    def lines(out, *more, code=0):
        done = CliRunner().invoke(app, [*map(str, folder), "--out", str(tmp_path / out), *more])
        assert done.exit_code == code, done.output
        return done.output if code else (tmp_path / out / "results.jsonl").read_text(encoding="utf-8")

    first = lines("a", "--votes", "3", "--seed", "5")
    assert [json.loads(line)["request"]["votes"] for line in first.splitlines()] == [3, 3]
    assert lines("b", "--votes", "3", "--seed", "5", "--batch-size", "2") == first
    texts = [
        [json.loads(line)["text"] for line in found.splitlines()] for found in (first, lines("c", "--votes", "3"))
    ]
    assert texts[0] != texts[1]
    assert "with another seed" in " ".join(lines("a", "--votes", "3", code=1).split())
    assert "votes" not in json.loads(lines("d").splitlines()[0])["request"]
    for more, said in (
        (("--seed", "1"), "--seed is for answers that are sampled"),
        (("--votes", "3", "--server", "http://127.0.0.1:1"), "no phrases, no --server"),
        (("--votes", "3", "--model", "embedded"), "write coordinates; 'embedded' is none"),
    ):
        assert said in " ".join(lines("e", *more, code=1).split())

    model, processor = loaded
    write, asked = model.generate_with_masks, []

    def dictated(**kwargs):
        asked.append(kwargs)
        return write(**kwargs, logits_processor=[dictation(processor, ANSWER, ANSWER, "[]")])

    monkeypatch.setattr(model, "generate_with_masks", dictated)
    settings = Settings("m", None, "What?", [], None, 0.0, None, "auto")
    assert {"votes", "seed"}.isdisjoint(settings.request())
    command = Segmenter(replace(settings, votes=3, seed=0), *loaded)
    for result in command.compute(command.prepare(IMAGES[:2])):
        assert (result.segments[0].label, result.segments[0].slot_prob) == ("cup", pytest.approx(2 / 3))
    assert [(one["num_return_sequences"], len(one["input_ids"])) for one in asked] == [(3, 1)] * 2


def test_evaluations_join_what_was_found(loaded, monkeypatch, tmp_path):
    model, processor = loaded
    write, seen = model.generate_with_masks, []

    def dictated(**kwargs):
        count = len(kwargs["input_ids"])
        texts = processor.batch_decode(kwargs["input_ids"], skip_special_tokens=True)
        seen.extend(texts)
        answers = ["[]" if "nothing" in text else ANSWER for text in texts]
        assert len(answers) == count
        return write(**kwargs, logits_processor=[dictation(processor, *answers)])

    monkeypatch.setattr(model, "generate_with_masks", dictated)
    inputs = processor(images=IMAGES[0], text="all", return_tensors="pt")
    (result,) = processor.post_process_segmentation(model.generate_with_masks(**inputs), inputs, union=True)
    target = Image.fromarray(result.segments[0].mask)
    questions = [
        Question(IMAGES[0], "all", "", ["all"], [target], [None]),
        Question(IMAGES[0], "nothing", "", ["nothing"], [target], [None]),
    ]
    scores = evaluate(model, processor, questions, batch_size=2)
    assert scores.overall["giou"] == pytest.approx(0.5, abs=1e-4)  # the sums have a small number below
    assert any("Locate" in text for text in seen)
    # A question of several phrases is asked by them, and changes nothing for its neighbours.
    several = Question(IMAGES[0], "all", "", ["cup", "zebra"], [None, None], [None, None])
    mixed = [evaluate(model, processor, [*questions[:1], several, *questions[1:]], batch_size=size) for size in (1, 3)]
    assert mixed[0].to_dict() == mixed[1].to_dict()
    assert mixed[0].rejected == mixed[1].rejected == [scores.rejected[0], False, True, scores.rejected[1]]
    assert any("the following categories" in text for text in seen)
    alone = copy.copy(processor)
    alone._format = COORDINATE_FORMATS["vision_reasoner"]
    options = Loaded("tabletop", tmp_path, protocol="free", pair=(model, alone))
    monkeypatch.setattr(options.__class__, "load_model", lambda self: pytest.fail("the model is loaded first"))
    with pytest.raises(ValueError, match=r"2 phrases were given for one row.*give one phrase per row"):
        run_questions(options, [several])
    rules = rules_for(processor, "refcoco", "free")
    assert rules.writes_coordinates
    assert rules_for(processor, "reasonseg", "free").writes_coordinates


QWEN3_VL = PARITY / "sa2va" / "qwen3_vl" / "checkpoint"


@pytest.fixture(scope="module")
def qwen3_vl(tmp_path_factory):
    """Qwen3-VL's folder as published, of a tiny size: its files name the processors for images and for videos."""
    folder = tmp_path_factory.mktemp("qwen") / "Qwen3-VL-2B-Instruct"
    config, tokenizer = tiny.qwen3_vl_config(), AutoTokenizer.from_pretrained(QWEN3_VL)
    config.text_config.vocab_size = len(tokenizer)
    for field in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token = field.removesuffix("_token_id").replace("image", "image_pad").replace("video", "video_pad")
        setattr(config, field, tokenizer.convert_tokens_to_ids(f"<|{token}|>"))
    tiny.randomize(AutoModelForImageTextToText.from_config(config)).save_pretrained(folder)
    for name in ("chat_template.jinja", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(QWEN3_VL / name, folder)
    sizes = {"patch_size": 14, "size": {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}}
    change_json(folder / "preprocessor_config.json", lambda stored: stored | sizes)
    videos = {"video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor", **sizes}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos), encoding="utf-8")
    return folder


@pytest.mark.parametrize("system", ["lisa", "reasoning-segmentation", "attend-and-segment"])
def test_other_systems_take_it_too(qwen3_vl, parts, tmp_path, system):
    out = compose({"system": system, "vlm": qwen3_vl, "segmenter": parts["segmenter"]}, tmp_path / "repo").out
    assert verify_repository(out).problems == []
    processor = AutoProcessor.from_pretrained(out)
    assert processor.image_token_id in processor(images=IMAGES[0], text="What?", return_tensors="pt")["input_ids"]


def test_qwen3_vl_needs_no_torchvision(qwen3_vl, parts, tmp_path):
    named = {"vlm": qwen3_vl, "segmenter": parts["segmenter"]}
    out = compose({"system": "coordinates", **named}, tmp_path / "repo").out
    assert verify_repository(out).problems == []
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["coordinate_format"] == "qwen3_vl"
    model, processor = AutoModel.from_pretrained(out).eval(), AutoProcessor.from_pretrained(out)
    assert isinstance(processor.vlm_processor, Qwen3VLProcessor)
    # Transformers looks there for the video processor, which it makes where torchvision is installed.
    processor.save_pretrained(tmp_path / "again")
    videos = json.loads((qwen3_vl / "video_preprocessor_config.json").read_text(encoding="utf-8"))
    for folder in (out, tmp_path / "again"):
        saved = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        assert saved["video_processor"] == videos
    ids = processor.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    dictated = tiny.Dictation([ids], eos_token_id=processor.tokenizer.eos_token_id)
    inputs = processor(images=IMAGES[0], text="What is there?", return_tensors="pt")
    assert processor.image_token_id in inputs["input_ids"]
    output = model.generate_with_masks(**inputs, logits_processor=[dictated])
    (result,) = processor.post_process_segmentation(output, inputs)
    assert [segment.label for segment in result.segments] == ["cup", "dog"]
    assert [segment.mask.shape for segment in result.segments] == [IMAGES[0].size[::-1]] * 2


def test_what_smolvlm_needs(parts, tmp_path, monkeypatch):
    """num2words, which its processor has for videos, and no torchvision."""
    folder = tmp_path / "SmolVLM-256M-Instruct"
    tiny.smolvlm_config().save_pretrained(folder)
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(QWEN3_VL / name, folder)
    images = {"image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    made = {"system": "coordinates", "coordinate_format": "qwen3_vl", "vlm": folder, "segmenter": parts["segmenter"]}
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ConversionError, match=r"a package that is not installed \(Package `num2words` is required"):
        compose(made, tmp_path / "repo")
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    processor = without_videos(processing_smolvlm.SmolVLMProcessor).from_pretrained(folder)
    assert (processor.image_token, processor.video_processor) == ("<image>", None)
    with pytest.raises(ValueError, match="takes images and text alone"):
        processor(text="a", videos=[IMAGES])
