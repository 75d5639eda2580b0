"""Number formats of a loaded model: the segmenter's, quantized, compiled."""

import re

import pytest
import torch
from PIL import Image
from transformers import AutoModel, CompileConfig
from typer.testing import CliRunner

from reasonseg import precision
from reasonseg.cli import app
from reasonseg.modeling.segmenters import segmenter_adapter
from reasonseg.precision import QUANTIZATIONS, Precision, compile_model, load_model
from tests.support import tiny


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    tiny.gsva_model(tiny.llava_config(hidden_size=128, intermediate_size=256), seed=2).save_pretrained(folder)
    return folder


def test_the_segmenter_s_type_reaches_the_model(repo):
    model = load_model(AutoModel, repo, Precision("bfloat16", "float32"), CPU)
    assert (model.dtype, segmenter_adapter(model.segmenter).encoder_dtype) == (torch.bfloat16, torch.float32)
    assert not model.training


def test_only_what_is_not_the_default_is_named_beside_a_result():
    assert Precision(compile=True).settings() == {}
    given = Precision("bfloat16", "float32", "int8")
    assert given.settings() == {"dtype": "bfloat16", "segmenter_dtype": "float32", "quantization": "int8"}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_quantization_without_its_package_says_what_to_install(repo, quantization, monkeypatch):
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    message = f"quantization is '{quantization}', which needs {QUANTIZATIONS[quantization]}. Install it"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(AutoModel, repo, Precision(quantization=quantization), CPU)


def test_an_unknown_quantization():
    with pytest.raises(ValueError, match="quantization is '3bit'; allowed are 4bit, 8bit, int8, int4"):
        Precision(quantization="3bit")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_layers_of_the_language_model_alone_are_quantized(repo, quantization):
    pytest.importorskip(QUANTIZATIONS[quantization], reason="of the extra `quantization`")
    plain = load_model(AutoModel, repo, Precision("bfloat16"), CPU)
    model = load_model(AutoModel, repo, Precision("bfloat16", quantization=quantization), CPU)
    expected = dict(plain.named_parameters())
    for name, value in model.named_parameters():
        is_layer = re.search(r"language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$", name)
        same = type(value) is torch.nn.Parameter and value.dtype == expected[name].dtype
        assert bool(is_layer) == (not same), (name, type(value), value.dtype)
    ids, images = tiny.with_answers(tiny.prompts([6]), [[10, tiny.SEG]]), tiny.images(1)
    with torch.no_grad():
        images["pixel_values"] = images["pixel_values"].bfloat16()
        assert model(**ids, **images).pred_masks[0].isfinite().all()


def test_commands_refuse_a_segmenter_s_type_where_there_is_none(vip_llava_repo, tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 30)).save(image)
    arguments = ["ask", image, "What is it?", "-m", vip_llava_repo, "--segmenter-dtype", "float32"]
    result = CliRunner().invoke(app, [*map(str, arguments), "-o", str(tmp_path / "out.png")])
    assert result.exit_code == 1
    assert "--segmenter-dtype is 'float32', but" in " ".join(result.output.split())
    assert "has no segmenter" in " ".join(result.output.split())


def test_a_run_names_its_formats_and_another_format_is_another_run(tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64), "white").save(image)
    command = ["segment", str(image), "-p", "the cup", "-m", "embedded", "-o", str(tmp_path / "out")]
    bfloat16 = ["--segmenter-dtype", "bfloat16"]
    assert CliRunner().invoke(app, [*command, *bfloat16]).exit_code == 0
    assert '"segmenter_dtype": "bfloat16"' in (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8")
    other = CliRunner().invoke(app, command)
    assert other.exit_code == 1
    assert "with another segmenter_dtype. Use another --out folder" in " ".join(other.output.split())
    assert "1 of 1 images are done already" in CliRunner().invoke(app, [*command, *bfloat16]).output


# ---- compiled -------------------------------------------------------------------------------------------------------


def test_a_static_cache_gives_the_same_answers_and_masks():
    model = tiny.gsva_model(seed=2)
    tiny.favour_slots(model)
    inputs = {**tiny.prompts([6, 9]), **tiny.images(2), "max_new_tokens": 8, "pad_token_id": tiny.PAD}
    assert_same(
        model.generate_with_masks(**inputs, cache_implementation="static"), model.generate_with_masks(**inputs)
    )


def assert_same(found, expected):
    assert torch.equal(found.sequences, expected.sequences)
    assert sum(map(len, expected.pred_masks)) > 0
    for a, b in zip(found.pred_masks, expected.pred_masks, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_compiled_step_is_one_graph_and_gives_the_same():
    """Traced in full, its graph is run by torch itself: what a compiler makes of it takes minutes."""
    model = tiny.gsva_model(tiny.llava_config(num_hidden_layers=1), seed=2)
    tiny.favour_slots(model)
    inputs = {**tiny.prompts([6]), **tiny.images(1), "max_new_tokens": 4, "pad_token_id": tiny.PAD}
    expected = model.generate_with_masks(**inputs)
    config = CompileConfig(backend="eager", fullgraph=True)  # raises where a graph breaks
    config._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same(model.generate_with_masks(**inputs, cache_implementation="static", compile_config=config), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_a_compiled_image_encoder_is_one_graph_and_gives_the_same():
    model, pixels = tiny.gsva_model(seed=2), tiny.images(1)["sam_pixel_values"]
    adapter = segmenter_adapter(model.segmenter)
    expected = adapter.encode(pixels)["image_embeddings"]
    torch._dynamo.reset()
    model.segmenter.vision_encoder.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(adapter.encode(pixels)["image_embeddings"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.rare
def test_what_the_compiler_makes_gives_the_same():
    model = tiny.gsva_model(seed=2)
    tiny.favour_slots(model)
    inputs = {**tiny.prompts([6]), **tiny.images(1), "max_new_tokens": 8, "pad_token_id": tiny.PAD}
    expected = model.generate_with_masks(**inputs)
    torch._dynamo.reset()
    assert_same(compile_model(model).generate_with_masks(**inputs), expected)


def test_what_compile_sets():
    model = compile_model(tiny.gsva_model(seed=2))
    assert model.segmenter.vision_encoder._compiled_call_impl is not None
    assert model.vlm.generation_config.cache_implementation == "static"
    assert model.vlm.generation_config.compile_config._compile_all_devices


@torch.no_grad()
def test_the_recorder_of_head_inputs_breaks_no_graph():
    model = tiny.gsva_model(seed=2)
    ids, images = tiny.with_answers(tiny.prompts([6]), [[10, tiny.SEG]]), tiny.images(1)
    model(**ids, **images)  # leaves its hook at the output embedding
    head = model.vlm.get_output_embeddings()
    assert head._forward_pre_hooks
    explained = torch._dynamo.explain(head)(torch.zeros(1, 1, head.in_features))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
