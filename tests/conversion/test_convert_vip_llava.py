"""ViP-LLaVA's shards, with and without the tower, on three language models, become repositories."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoProcessor, GenerationConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

import reasonseg
from reasonseg.conversion.configs import clip_config_from_shapes
from reasonseg.conversion.configs_vip_llava import vip_llava_config
from reasonseg.conversion.convert_vip_llava import convert_vip_llava, vip_llava_scheme
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.inventory import Inventory
from reasonseg.conversion.plan import expected_shapes, plan_tensors
from reasonseg.conversion.recognition import inspect_checkpoint
from reasonseg.conversion.rules_vip_llava import vip_llava_table
from reasonseg.conversion.to_original import write_original
from reasonseg.conversion.verify import verify_repository
from tests.support.full_size import FakeTokenizer, ShapesOnly, layout_tensors, read_layout
from tests.support.originals import change_json, digests, weights
from tests.support.parity_data import vip_llava_with_tower
from tests.support.recorded_vip_llava import CHECKPOINT, PHI_3, TOWER, recorded_image


LAYERS = [-2, -5, -8, -11, 6]


def copy(source, folder):
    shutil.copytree(source, folder)
    return folder


def change_weights(folder, change):
    path = folder / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_the_repository(vip_llava_repo):
    config = json.loads((vip_llava_repo / "config.json").read_text())
    assert (config["model_type"], config["image_token_index"], config["image_seq_length"]) == ("vipllava", 620, 64)
    assert config["vision_feature_layer"] == config["vision_feature_layers"] == LAYERS
    assert config["auto_map"] == {"AutoModelForImageTextToText": "modeling_vip_llava.VipLlavaForConditionalGeneration"}
    processor = json.loads((vip_llava_repo / "processor_config.json").read_text())
    assert processor["auto_map"]["AutoProcessor"] == "processing_vip_llava.VipLlavaProcessor"
    files = {path.name for path in vip_llava_repo.iterdir()}
    assert {"processing_vip_llava.py", "image_processing_vip_llava.py", "visual_prompts.py"} <= files
    assert not {"visual_prompt_sampling.py", "mask_reading.py"} & files, "what training alone needs"
    assert {
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "manifest.json",
    } <= files
    assert {"modeling_vip_llava.py", "outputs.py"} <= files
    for model_class in (VipLlavaForConditionalGeneration, reasonseg.VipLlavaForConditionalGeneration):
        _, info = model_class.from_pretrained(vip_llava_repo, output_loading_info=True)
        assert not any(info.values()), info
    tokenizer = AutoProcessor.from_pretrained(vip_llava_repo).tokenizer
    assert (tokenizer.padding_side, tokenizer.model_max_length, tokenizer.pad_token) == ("left", 2048, "<unk>")


@pytest.mark.parametrize("spelling", ["vision_feature_layer", "vision_feature_layers"])
def test_both_spellings_of_the_layers_are_read(vip_llava_repo, tmp_path, spelling):
    config = json.loads((vip_llava_repo / "config.json").read_text())
    for name in {"vision_feature_layer", "vision_feature_layers"} - {spelling}:
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for loaded in (AutoConfig.from_pretrained(tmp_path), VipLlavaConfig.from_pretrained(vip_llava_repo)):
        assert list(loaded.vision_feature_layer) == LAYERS


def test_the_tower_may_be_inside(vip_llava_repo, tmp_path):
    source = vip_llava_with_tower(tmp_path / "vip-llava-7b")
    # The sizes of a tower without its config are known for ViT-L only, so its config alone is passed.
    tower = tmp_path / "tower"
    tower.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(TOWER / name, tower)
    report = convert_vip_llava(source, vision_tower=tower, out=tmp_path / "inside", dtype="float32")
    assert report.origins == {"checkpoint": 226}
    assert digests(tmp_path / "inside")["model.safetensors"] == digests(vip_llava_repo)["model.safetensors"]
    both = convert_vip_llava(source, vision_tower=TOWER, out=tmp_path / "both", dtype="float32")
    assert both.origins == {"vision tower": 199, "checkpoint": 27}
    assert {entry.reason for entry in both.dropped} == {"taken from the vision tower"}
    with pytest.raises(ConversionError, match="only ViT-L"):
        convert_vip_llava(source, out=tmp_path / "without")
    assert not (tmp_path / "without").exists()


def test_shards(vip_llava_repo, tmp_path):
    source = copy(CHECKPOINT, tmp_path / "vip-llava-7b")
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    (source / "pytorch_model.bin").unlink()
    names, weight_map = list(state), {}
    for number, part in enumerate((names[:10], names[10:]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, source / file)
        weight_map |= dict.fromkeys(part, file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert_vip_llava(source, vision_tower=TOWER, out=tmp_path / "out", dtype="float32", max_shard_size="1MB")
    found = weights(tmp_path / "out")
    expected = weights(vip_llava_repo)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_stored_types(tmp_path):
    report = convert_vip_llava(CHECKPOINT, vision_tower=TOWER, out=tmp_path / "half")
    assert report.dtype == torch.float16
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}


def test_verified_and_written_back(vip_llava_repo, tmp_path):
    report = verify_repository(vip_llava_repo, against={"checkpoint": CHECKPOINT, "vision tower": TOWER})
    assert report.problems == []
    assert report.compared == {"to the cast": 226}
    half = convert_vip_llava(CHECKPOINT, vision_tower=TOWER, out=tmp_path / "half").out
    write_original(half, tmp_path / "original")
    original = torch.load(CHECKPOINT / "pytorch_model.bin", weights_only=True)
    found = torch.load(tmp_path / "original" / "pytorch_model.bin", weights_only=True)
    assert found.keys() == original.keys()
    assert all(torch.equal(found[name], original[name]) for name in original)


def test_images_that_were_not_padded_in_training(tmp_path):
    source = copy(CHECKPOINT, tmp_path / "source")
    change_json(source / "config.json", lambda config: config | {"image_aspect_ratio": "square"})
    report = convert_vip_llava(source, vision_tower=TOWER, out=tmp_path / "out")
    assert AutoProcessor.from_pretrained(report.out).image_processor.do_pad is False


def test_recognised(vip_llava_repo):
    assert inspect_checkpoint(CHECKPOINT).recognised.system == "vip_llava"
    assert inspect_checkpoint(vip_llava_repo).recognised.variant == "ViP-LLaVA in the Hugging Face layout"


class TestPhi3:
    def test_the_repository(self, vip_llava_phi_3_repo):
        config = AutoConfig.from_pretrained(vip_llava_phi_3_repo)
        text = config.text_config
        assert (text.model_type, text.sliding_window, text.vocab_size) == ("phi3", 2047, 625)
        processor = AutoProcessor.from_pretrained(vip_llava_phi_3_repo)
        assert processor.template == "llava_phi_3"
        ends = GenerationConfig.from_pretrained(vip_llava_phi_3_repo).eos_token_id
        assert processor.tokenizer.convert_ids_to_tokens(ends) == ["</s>", "<|end|>"]

    def test_a_free_row_takes_the_image(self, tmp_path):
        """The published one has rows that no token uses."""
        source = copy(PHI_3, tmp_path / "vip-llava-phi-3")

        def add_rows(state):
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                state[name] = torch.cat([state[name], state[name][:4]])

        change_weights(source, add_rows)
        report = convert_vip_llava(source, vision_tower=TOWER, out=tmp_path / "out")
        config = AutoConfig.from_pretrained(report.out)
        assert (config.text_config.vocab_size, config.image_token_index) == (628, 624)
        assert verify_repository(report.out, against={"checkpoint": source, "vision tower": TOWER}).problems == []
        generation = GenerationConfig.from_pretrained(report.out)
        assert generation.suppress_tokens == [624]


def llama_3_checkpoint(folder):
    """The recorded checkpoint with a byte-level tokenizer of Llama 3's kind, whose pad token has no row."""
    copy(CHECKPOINT, folder)
    for name in ("tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend.add_special_tokens(specials)
    begin = backend.token_to_id(specials[0])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{specials[0]} $A", pair=f"{specials[0]} $A $B", special_tokens=[(specials[0], begin)]
    )
    rows = backend.get_vocab_size()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": rows}))
    named = {"bos_token": specials[0], "eos_token": specials[1], "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    change = {"vocab_size": rows, "rope_theta": 500000.0, "num_key_value_heads": 2}
    change_json(folder / "config.json", lambda config: config | change)

    def narrow(state):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = state[name][:rows].clone()
        for name in state:
            if ".k_proj." in name or ".v_proj." in name:
                state[name] = state[name][:32].clone()

    change_weights(folder, narrow)
    return folder, rows


@pytest.fixture(scope="module")
def llama_3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-3")
    source, rows = llama_3_checkpoint(folder / "vip-llava-llama-3-8b")
    return convert_vip_llava(source, vision_tower=TOWER, out=folder / "out", dtype="float32"), rows


class TestLlama3:
    def test_the_repository(self, llama_3):
        report, rows = llama_3
        text = AutoConfig.from_pretrained(report.out).text_config
        assert (text.vocab_size, text.num_key_value_heads) == (rows + 2, 2)
        assert text.rope_parameters["rope_theta"] == 500000.0
        processor = AutoProcessor.from_pretrained(report.out)
        assert (processor.template, processor.image_token_id) == ("llava_llama_3", rows + 1)
        assert processor.tokenizer.pad_token_id == rows
        ends = GenerationConfig.from_pretrained(report.out).eos_token_id
        assert processor.tokenizer.convert_ids_to_tokens(ends) == ["<|end_of_text|>", "<|eot_id|>"]

    def test_ids(self, llama_3):
        processor = AutoProcessor.from_pretrained(llama_3[0].out)
        inputs = processor(recorded_image(0), "Who\u00e9?")
        ids = inputs["input_ids"][0]
        tokens = processor.tokenizer.convert_ids_to_tokens(ids)
        assert tokens[:3] == ["<|begin_of_text|>", "<|begin_of_text|>", "<|start_header_id|>"], "twice, as in training"
        assert tokens.count("<image>") == 64
        last = len(tokens) - tokens[::-1].index("<image>")
        assert processor.tokenizer.decode(ids[last:]) == (
            "\nWho\u00e9?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        )
        message = {"role": "user", "content": [{"type": "image", "image": recorded_image(0)}]}
        message["content"].append({"type": "text", "text": "Who\u00e9?"})
        options = {"add_generation_prompt": True, "tokenize": True}
        assert processor.apply_chat_template([message], **options) == [ids]
        from_messages = processor.apply_chat_template([message], **options, return_dict=True, return_tensors="pt")
        assert from_messages["input_ids"].tolist() == [ids]
        assert from_messages["pixel_values"].shape[0] == 1

    def test_it_answers(self, llama_3):
        report, _ = llama_3
        model = VipLlavaForConditionalGeneration.from_pretrained(report.out).eval()
        processor = AutoProcessor.from_pretrained(report.out)
        inputs = processor([recorded_image(0), None], ["Who?", "Why so?"], return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert (written[:, inputs["input_ids"].shape[1] :] != processor.image_token_id).all()


class SizedTokenizer(FakeTokenizer):
    """Says how many tokens there are; the image's is the last."""

    def __init__(self, length: int):
        super().__init__({}, length - 1)
        self.image_token_id = length - 1


@pytest.mark.parametrize(
    ("name", "tokens", "rows", "text_type"),
    [
        ("vip-llava-7b", 32001, 32001, "llama"),
        ("vip-llava-13b", 32001, 32001, "llama"),
        ("vip-llava-llama-3-8b", 128257, 128257, "llama"),
        ("vip-llava-phi-3-mini-3.8b", 32012, 32064, "phi3"),
    ],
)
def test_published_sizes(name, tokens, rows, text_type):
    """Names and shapes of every published checkpoint fill the model that its config describes."""
    layout, tensors = read_layout(name), layout_tensors(name)
    inventory = Inventory()
    inventory.add(ShapesOnly(tensors), vip_llava_table(), "checkpoint")
    vision = clip_config_from_shapes(inventory.shapes("model.vision_tower."))
    assert (vision.image_size, vision.num_hidden_layers) == (336, 24)
    composed = vip_llava_config(layout["config"], vision, SizedTokenizer(tokens), rows)
    with torch.device("meta"):
        model = VipLlavaForConditionalGeneration(composed)
    scheme = vip_llava_scheme(rows - layout["config"]["vocab_size"])
    planned = plan_tensors(
        inventory,
        expected_shapes(model),
        dtype=torch.float16,
        alpha_of_rank=lambda rank: 0.0,
        identity_projector=False,
        scheme=scheme,
    )
    assert {tensor.name: tensor.shape for tensor in planned} == expected_shapes(model)
    text = composed.text_config
    assert (text.model_type, text.vocab_size, composed.image_seq_length) == (text_type, rows, 576)
    assert text.rms_norm_eps == 1e-5
    assert text.rope_parameters["rope_theta"] == layout["config"].get("rope_theta", 10000.0)
    assert getattr(text, "sliding_window", None) == layout["config"].get("sliding_window")


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "llama"}, "A ViP-LLaVA config is needed"),
            ({"text_config": {}}, "which transformers loads as it is"),
            ({"hidden_size": 32}, "the configs ask for"),
            ({"num_hidden_layers": 3}, "lack 9 parameters of the language model"),
            ({"num_hidden_layers": None}, "does not state num_hidden_layers"),
            ({"mm_use_im_start_end": True}, "puts tokens around the image"),
        ],
    )
    def test_another_config(self, tmp_path, change, message):
        source = copy(CHECKPOINT, tmp_path / "source")
        change_json(source / "config.json", lambda config: config | change)
        self.refused(source, tmp_path, message)

    def test_no_tower(self, tmp_path):
        with pytest.raises(ConversionError, match=r"does not hold the CLIP tower.*clip-vit-large-patch14-336"):
            convert_vip_llava(CHECKPOINT, out=tmp_path / "out")

    def test_no_folder(self, tmp_path):
        self.refused(tmp_path / "nothing", tmp_path, "There is no such folder")

    def test_plain_llava(self, tmp_path):
        source = copy(CHECKPOINT, tmp_path / "source")

        def change(state):
            for name in [name for name in state if ".mm_projector." in name]:
                state[name.replace("final_linear.", "")] = state.pop(name)

        change_weights(source, change)
        self.refused(source, tmp_path, "do not belong to the ViP-LLaVA layout")

    def test_a_damaged_tokenizer(self, tmp_path):
        source = copy(PHI_3, tmp_path / "source")
        (source / "tokenizer.json").write_text("{}")
        self.refused(source, tmp_path, "Not a tokenizer")
        (source / "tokenizer.json").unlink()
        self.refused(source, tmp_path, "There is no tokenizer.json")

    def test_contradicting_ids(self, tmp_path):
        source = copy(PHI_3, tmp_path / "source")
        change_json(source / "added_tokens.json", lambda ids: ids | {"<|end|>": 700})
        config = json.loads((source / "tokenizer_config.json").read_text())
        del config["added_tokens_decoder"]["623"]
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        self.refused(source, tmp_path, "the id 700")

    def test_unknown_options(self, tmp_path):
        for options, message in (({"dtype": "int8"}, "dtype is 'int8'"), ({"template": "v1"}, "template is 'v1'")):
            with pytest.raises(ConversionError, match=message):
                convert_vip_llava(CHECKPOINT, vision_tower=TOWER, out=tmp_path / "out", **options)

    def refused(self, source, tmp_path, message):
        with pytest.raises(ConversionError, match=message):
            convert_vip_llava(source, vision_tower=TOWER, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
