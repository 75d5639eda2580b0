"""Parts become repositories that have learned nothing yet: of which rows and numbers, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from reasonseg.conversion.components import SegmenterComponent, VlmComponent
from reasonseg.conversion.compose import check_parts, compose
from reasonseg.conversion.compose_reasoning_segmentation import build_composed_model, compose_lisa
from reasonseg.conversion.configs import llava_config, text_config
from reasonseg.conversion.convert_lisa_gsva import build_model
from reasonseg.conversion.delta_weights import check_exactness
from reasonseg.conversion.drawing import Drawing, seed_of
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.inventory import Inventory
from reasonseg.conversion.plan import expected_shapes
from reasonseg.conversion.rules import BASE, WEIGHT
from reasonseg.conversion.rules_lisa_gsva import SEGMENTER, detect_layout, lisa_gsva_table, sam_table
from reasonseg.conversion.sam_config import read_sam_config
from reasonseg.conversion.sources import TensorInfo
from reasonseg.conversion.systems import GSVA, LISA
from reasonseg.conversion.verify import verify_repository
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from tests.conversion.test_rules_lisa_gsva import CLIP_L_224
from tests.processing.test_processing_reasoning_segmentation import IMAGES, qwen_processor
from tests.support import tiny
from tests.support.full_size import FakeTokenizer, ShapesOnly, layout_tensors, read_layout
from tests.support.originals import digests, read, weights
from tests.support.parity_data import PARITY
from tests.support.parts import ADDED, ROWS, llava_state, write_llama, write_parts
from tests.support.recorded_attention import LLAVA, TOWER


# The first numbers of the new row of a LISA with the seed 0.
DRAWN = [[-0.004780965857207775, -0.02266889251768589], [0.002085097599774599, 0.01641002669930458]]
EMBEDDING, HEAD = "vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight"


class OnePiece:
    """A tensor as an inventory holds one."""

    def __init__(self, tensor):
        self.tensor, self.key = tensor, "a tensor"
        self.info = TensorInfo(tuple(tensor.shape), tensor.dtype)

    def load(self):
        return self.tensor


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def composed(parts, tmp_path_factory):
    """One repository of each pair, composed when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("composed"), {}

    def get(system, vlm="llava", segmenter="sam", **options):
        key = json.dumps([system, vlm, segmenter, options], sort_keys=True)
        if key not in made:
            tower = {"vision_tower": parts["clip"]} if vlm == "llava" else {}
            named = {"system": system, "vlm": parts[vlm], "segmenter": parts[segmenter], **tower, **options}
            made[key] = compose(named, folder / str(len(made))).out
        return made[key]

    return get


def answer_and_learn(repo, slots, answer):
    """Load a repository, generate, and compute a loss with one mask."""
    model, processor = AutoModel.from_pretrained(repo).eval(), AutoProcessor.from_pretrained(repo)
    inputs = processor(images=IMAGES[:1], text=["Where is it?"], return_tensors="pt")
    with torch.no_grad():
        output = model.generate_with_masks(**inputs, max_new_tokens=3)
    assert len(processor.post_process_segmentation(output, inputs)) == 1
    options = {"answer": [answer], "return_labels": True, "return_tensors": "pt"}
    inputs = processor(images=IMAGES[:1], text=["Where is it?"], **options)
    size = tuple(inputs["original_sizes"][0].tolist())
    output = model(**inputs, mask_labels=[torch.ones(slots, *size)])
    assert output.loss.isfinite()
    output.loss.backward()
    assert model.seg_projector.linear_1.weight.grad.abs().sum() > 0
    assert len(output.pred_masks[0]) == slots
    return model, processor


def test_a_gsva_is_what_its_training_starts_from(composed, parts, gsva_repo):
    repo = composed("gsva")
    assert verify_repository(repo).problems == []
    found, converted, original = weights(repo), weights(gsva_repo), llava_state()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in converted.items()
    }
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in converted.items()
    }
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (repo, gsva_repo))
    assert config == expected
    tokenizers = [AutoProcessor.from_pretrained(folder).tokenizer.get_vocab() for folder in (repo, gsva_repo)]
    assert tokenizers[0] == tokenizers[1]
    # What is taken from the parts, bit for bit.
    assert torch.equal(found[EMBEDDING][:ROWS], original["model.embed_tokens.weight"])
    assert torch.equal(found[HEAD][:ROWS], original["lm_head.weight"])
    projector = "vlm.model.multi_modal_projector.linear_1.weight"
    assert torch.equal(found[projector], original["model.mm_projector.weight"])
    sam, table = read(parts["sam"]), sam_table()
    for name in ("image_encoder.pos_embed", "mask_decoder.iou_token.weight"):
        assert torch.equal(found[table.rename(name)], sam[name])
    # `<image>`, which is never drawn
    assert not found[EMBEDDING][-1].any()
    assert torch.equal(found[HEAD][-1], found[HEAD][0])
    _, processor = answer_and_learn(repo, 2, "Sure,a dog:[SEG], a cat:[REJ].")
    assert type(processor).__name__ == "GsvaProcessor"
    assert "<im_start><image><im_end>" in processor.chat_template


def test_new_rows_and_projector_begin_as_the_originals_do(composed):
    """Rows: normal with the config's initializer_range; `text_hidden_fcs`: between plus and minus 1 / sqrt(inputs)."""
    found = weights(composed("gsva"))
    rows = torch.cat([found[name][ROWS : ROWS + ADDED] for name in (EMBEDDING, HEAD)])
    assert not torch.equal(rows[:ADDED], rows[ADDED:])
    assert abs(rows.std().item() / 0.02 - 1) < 0.12
    assert abs(rows.mean().item()) < 4 * 0.02 / rows.numel() ** 0.5
    for name, bound in (("linear_1", 1 / 8), ("linear_2", 1 / 8)):
        for part in ("weight", "bias"):
            value = found[f"seg_projector.{name}.{part}"]
            assert bound * 0.9 < value.abs().max() <= bound
            assert value.dtype == torch.float32
    weight = found["seg_projector.linear_1.weight"]
    assert abs(weight.std().item() * 8 * 3**0.5 - 1) < 0.05


def test_the_same_seed_gives_the_same_bytes(composed, parts, tmp_path):
    first = composed("lisa")
    options = {"vlm": parts["llava"], "vision_tower": parts["clip"], "segmenter": parts["sam"]}
    again = compose({"system": "lisa", **options, "seed": 0}, tmp_path / "again").out
    assert digests(again) == digests(first)
    other = weights(compose({"system": "lisa", **options, "seed": 1}, tmp_path / "other").out)
    changed = {name for name, value in weights(first).items() if not torch.equal(value, other[name])}
    assert changed == {EMBEDDING, HEAD, *(name for name in other if name.startswith("seg_projector."))}


def test_what_is_drawn_is_known_number_by_number():
    """So that what one machine has written can be verified on another."""
    drawn = Drawing("normal", 0.02, seed_of(0, EMBEDDING)).draw((2, 2))
    torch.testing.assert_close(drawn, torch.tensor(DRAWN), atol=1e-9, rtol=1e-6)
    uniform = Drawing("uniform", 0.5, 7).draw((1 << 16,))
    assert uniform.abs().max() <= 0.5
    assert abs(uniform.std().item() * 12**0.5 - 1) < 0.01
    drawing = Drawing("normal", 0.02, 5)
    assert Drawing.from_json(json.loads(json.dumps(drawing.to_json()))) == drawing
    with pytest.raises(ValueError, match="no drawing"):
        Drawing.from_json({"distribution": "cauchy", "scale": 1.0, "seed": 0})


def test_new_numbers_are_verified_like_all_others(composed, parts, tmp_path):
    """With any source at hand, what was drawn is drawn again and compared."""
    report = verify_repository(composed("lisa"), against={"SAM file": parts["sam"]})
    assert report.problems == []
    assert report.compared["bit for bit"] == 174 + 4 + 2  # SAM, the projector, the identity


@pytest.mark.parametrize(
    ("system", "vlm", "segmenter", "answer", "tokens"),
    [
        ("lisa", "llava", "sam2", "It is [SEG].", 1),
        ("lisa", "llava_next", "sam2", "It is [SEG].", 1),
        ("gsva", "llava_next", "sam", "Sure, a dog: [SEG].", 2),
        ("reasoning_segmentation", "llava_next", "sam2", "Sure, it: [SEG].", 1),
        ("reasoning-segmentation", "llava", "sam", "Sure, it: [SEG].", 1),
    ],
)
def test_other_families(composed, parts, system, vlm, segmenter, answer, tokens):
    repo = composed(system, vlm, segmenter)
    assert verify_repository(repo).problems == []
    model, processor = answer_and_learn(repo, 1, answer)
    assert model.config.model_type == system.replace("-", "_")
    assert model.config.segmenter_config.model_type == segmenter
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    assert model.config.seg_token_id == processor.tokenizer.convert_tokens_to_ids("[SEG]")
    assert (model.config.rej_token_id is not None) == (tokens == 2)
    if vlm == "llava_next":
        assert type(processor).__name__ == "ReasoningSegmentationProcessor"
        source = weights(Path(parts["llava_next"]))
        (known,) = (value for name, value in source.items() if name.endswith("embed_tokens.weight"))
        rows = model.get_input_embeddings().weight
        assert len(rows) == len(known) + tokens
        assert torch.equal(rows[: len(known)], known)


def test_qwen_without_its_video_processor(parts, tmp_path):
    """Everything of Qwen2.5-VL but the video processor, which images do not need; it has rows that no token uses."""
    processor, vlm, spare = qwen_processor(), tmp_path / "vlm", 3
    config = tiny.qwen2_5_vl_config()
    config.text_config.vocab_size = len(processor.tokenizer) + spare
    config.image_token_id = processor.image_token_id
    source = tiny.randomize(AutoModelForImageTextToText.from_config(config))
    source.save_pretrained(vlm)
    processor.save_pretrained(vlm)
    named = {"system": "gsva", "vlm": str(vlm), "segmenter": parts["sam2"]}
    repo = compose(named, tmp_path / "repo").out
    assert verify_repository(repo).problems == []
    model = AutoModel.from_pretrained(repo)
    # The tokenizer knew [SEG]; [REJ] takes a row that was there.
    assert model.config.rej_token_id == len(processor.tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, source.get_input_embeddings().weight)


def test_attend_and_segment_and_a_new_projector(composed, parts, tmp_path):
    named = {"vlm": str(LLAVA), "vision_tower": str(TOWER), "segmenter": parts["sam2"], "heads": "mean"}
    repo = compose({"system": "attend-and-segment", **named}, tmp_path / "repo").out
    assert verify_repository(repo).problems == []
    assert "learned nothing" not in (repo / "README.md").read_text(encoding="utf-8"), "it needs no training"
    found = weights(composed("gsva", new_projector=True))
    own = weights(composed("gsva"))
    changed = {name for name, value in own.items() if not torch.equal(value, found[name])}
    projector = "vlm.model.multi_modal_projector.linear_1."
    assert changed == {f"{projector}weight", f"{projector}bias"}


def test_a_projector_of_a_pretraining(composed, parts, tmp_path):
    """Beside the projector such a file may hold the rows of <im_start> and <im_end>."""
    state = {
        "model.mm_projector.0.weight": torch.ones(64, 64),
        "model.mm_projector.0.bias": torch.zeros(64),
        "model.mm_projector.2.weight": torch.full((64, 64), 2.0),
        "model.mm_projector.2.bias": torch.zeros(64),
        "model.embed_tokens.weight": torch.zeros(2, 64),
    }
    torch.save(state, tmp_path / "mm_projector.bin")
    repo = composed("lisa", projector=str(tmp_path / "mm_projector.bin"))
    found = weights(repo)
    assert (found["vlm.model.multi_modal_projector.linear_2.weight"] == 2).all()
    config = json.loads((repo / "config.json").read_text(encoding="utf-8"))
    assert config["vlm_config"]["projector_hidden_act"] == "gelu"


def test_a_delta_becomes_base_plus_delta(parts, tmp_path):
    named = {"system": "lisa", "segmenter": parts["sam"], "vision_tower": parts["clip"]}
    repo = compose({**named, "base": parts["llama"], "delta": parts["delta"]}, tmp_path / "repo").out
    assert verify_repository(repo, against={"base": parts["llama"], "delta": parts["delta"]}).problems == []
    found, delta = weights(repo), read(Path(parts["delta"]) / "pytorch_model.bin")
    base = weights(Path(parts["llama"]))
    for name, ours in (("model.layers.1.mlp.up_proj.weight", "vlm.model.language_model.layers.1.mlp.up_proj.weight"),):
        assert torch.equal(found[ours], base[name] + delta[name])
        assert found[ours].dtype == torch.float16
    for name, ours in (("model.embed_tokens.weight", EMBEDDING), ("lm_head.weight", HEAD)):
        known = len(base[name])
        assert known == ROWS - ADDED
        assert torch.equal(found[ours][:known], base[name] + delta[name][:known])
        assert torch.equal(found[ours][known:ROWS], delta[name][known:]), "rows of LLaVA's own tokens"
    projector = "vlm.model.multi_modal_projector.linear_1.weight"
    assert torch.equal(found[projector], delta["model.mm_projector.weight"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("another width", r"The base has intermediate_size=96, the delta 128"),
        ("more layers", r"num_hidden_layers=3, the delta 2"),
        ("too many rows", r"the shape \(430, 64\), the delta's \(420, 64\)"),
        ("a missing tensor", r"lacks 1 tensors of the delta"),
        ("the delta itself", r"The base is a LLaVA itself"),
        ("another model", r"no LLaMA in the layout of transformers"),
    ],
)
def test_a_wrong_base_is_refused(parts, tmp_path, fault, message):
    base = tmp_path / "base"
    fields = {"another width": {"intermediate_size": 96}, "more layers": {"num_hidden_layers": 3}}
    if fault == "the delta itself":
        shutil.copytree(parts["delta"], base)
    elif fault == "another model":
        shutil.copytree(parts["clip"], base)
    else:
        write_llama(base, **fields.get(fault, {"vocab_size": 430} if fault == "too many rows" else {}))
    if fault == "a missing tensor":
        state = load_file(base / "model.safetensors")
        del state["model.norm.weight"]
        save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    named = {"system": "lisa", "segmenter": parts["sam"], "vision_tower": parts["clip"]}
    with pytest.raises(ConversionError, match=message) as caught:
        compose({**named, "base": str(base), "delta": parts["delta"]}, tmp_path / "out" / "repo")
    assert "Pass " in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_base_of_the_same_sizes_with_other_numbers_is_refused():
    """Of a fine-tuned model: sums with the right base are numbers of half precision, others hardly ever."""
    generator = torch.Generator().manual_seed(0)

    def draw(scale):
        return torch.randn(512, 1024, generator=generator) * scale

    base, other = draw(0.02).half(), draw(0.02).half()
    delta = (base.float() + draw(0.001)).half() - base

    def pieces(of_base, of_delta=delta):
        pair = {WEIGHT: OnePiece(of_delta), BASE: OnePiece(of_base)}
        return {f"vlm.model.language_model.layers.{layer}.mlp.up_proj.weight": pair for layer in range(8)}

    check_exactness(pieces(base), Path("base"))
    with pytest.raises(ConversionError, match=r"3\d% of the sums .* no numbers that a tuned model could have had"):
        check_exactness(pieces(other), Path("base"))
    with pytest.raises(ConversionError, match="same in base and delta"):
        check_exactness(pieces(delta), Path("base"))
    with pytest.raises(ConversionError, match="not finite"):
        check_exactness(pieces(torch.full_like(base, 65000), torch.full_like(base, 60000)), Path("base"))


@pytest.mark.parametrize(("system", "layout"), [(LISA, "lisa-7b-v1"), (GSVA, "gsva-7b-pt")])
def test_full_size_names_and_shapes_are_the_published_ones(system, layout):
    """A composed 7B has exactly the parameters of a converted one."""
    stored = read_layout(layout)
    tensors = layout_tensors(layout)
    inventory = Inventory()
    inventory.add(ShapesOnly(tensors), lisa_gsva_table(detect_layout(list(tensors))), "checkpoint")
    tokenizer = FakeTokenizer(stored["special_tokens"], stored["config"]["vocab_size"])
    published = build_model(system, stored["config"], CLIP_L_224, inventory, tokenizer)
    vlm = llava_config(
        stored["config"],
        text_config(stored["config"], tokenizer),
        CLIP_L_224,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        mlp_projector=False,
    )
    sam = Inventory()
    sam.add(ShapesOnly(layout_tensors("sam-vit-h")), sam_table(), "SAM file")
    segmenter = SegmenterComponent(read_sam_config(sam.shapes(SEGMENTER)), SegmenterImageProcessor())
    component = VlmComponent(vlm, tokenizer, None)
    composed = build_composed_model(system, component, segmenter, system.slot_tokens)
    assert expected_shapes(composed) == expected_shapes(published)
    assert composed.config.to_dict() == published.config.to_dict()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"system": "sam"}, r"The system is 'sam'; made of parts can be reasoning-segmentation, lisa, gsva, ivm"),
        (
            {"system": "lisa", "vlm": "x", "segmenter": "y", "heads": "mean"},
            r"LISA is not made with heads\. LISA takes",
        ),
        ({"system": "lisa", "vlm": "x"}, r"LISA cannot be made without segmenter=\. Pass segmenter="),
        ({"system": "gsva", "segmenter": "x"}, r"needs vlm=, or base= with delta=; neither of it"),
        ({"system": "gsva", "segmenter": "x", "delta": "y"}, r"not all of it was given"),
        ({"system": "gsva", "segmenter": "x", "vlm": "z", "base": "w", "delta": "y"}, r"more of it was given"),
        ({"system": "lisa", "segmenter": "x", "vlm": "z", "dtype": "int8"}, r"dtype is 'int8'; allowed are float32"),
        ({"system": "lisa", "segmenter": "x", "vlm": "z", "seed": -1}, r"from 0 on"),
        ({"system": "lisa", "segmenter": "x", "vlm": 7}, r"vlm is 7; text is expected"),
        ({"system": "ivm", "segmenter": "x", "vlm": "z", "vision_tower": "w"}, r"IVM is not made with vision_tower"),
    ],
)
def test_parts_are_checked_before_anything_is_read(parts, message, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it was looked up on the Hub"))
    with pytest.raises(ConversionError, match=message):
        check_parts(parts)


def test_a_function_asks_for_a_model_as_well(tmp_path):
    for given in ({}, {"vlm": "x", "base": "y", "delta": "z"}, {"delta": "z"}):
        with pytest.raises(ConversionError, match=r"Pass vlm=, or base= with delta=\."):
            compose_lisa(segmenter="x", out=tmp_path / "out", **given)


def test_parts_that_do_not_fit(parts, tmp_path):
    llava = {"system": "lisa", "vlm": parts["llava"], "segmenter": parts["sam"], "vision_tower": parts["clip"]}
    torch.save({"x": torch.ones(1)}, tmp_path / "other.bin")
    for changed, message in (
        ({"vision_tower": None}, "holds no CLIP tower"),
        ({"vlm": parts["llava_next"]}, r"layout of transformers.*Leave vision_tower= out"),
        ({"vlm": str(tmp_path / "nowhere")}, "no such folder"),
        ({"segmenter": parts["llava_next"]}, "A segmenter of type 'llava_next' is not known"),
        ({"projector": str(tmp_path / "other.bin")}, "no mm_projector"),
        ({"projector": str(tmp_path / "other.bin"), "new_projector": True}, "Give one of them"),
        ({"vlm": parts["llama"]}, "no projector between CLIP and the language model|neither tokenizer.model"),
        ({"system": "ivm", "vision_tower": None}, "LLaVA-1.5's config in the layout of transformers is needed"),
    ):
        with pytest.raises(ConversionError, match=message):
            compose(llava | changed, tmp_path / "out" / "repo")
        assert not (tmp_path / "out").exists(), message


def test_ivm(tmp_path):
    recorded = PARITY / "ivm"
    named = {"vlm": str(recorded / "llava_base"), "segmenter": str(recorded / "sam_vit_h_4b8939.pth")}
    repo = compose({"system": "ivm", **named}, tmp_path / "repo").out
    assert verify_repository(repo).problems == []
    found, base = weights(repo), read(recorded / "sam_vit_h_4b8939.pth")
    assert torch.equal(found[sam_table().rename("image_encoder.pos_embed")], base["image_encoder.pos_embed"])
    assert 0.5 < found["segmenter.shared_image_embedding.positional_embedding"].std() < 1.5
    assert (found["segmenter.mask_decoder.transformer.layer_norm_final_attn.weight"] == 1).all()
    model, processor = AutoModel.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    inputs = processor(images=IMAGES[:1], text=["open the drawer"], return_tensors="pt")
    height, width = inputs["original_sizes"][0].tolist()
    output = model(**inputs, mask_labels=[torch.ones(1, height, width)])
    assert output.loss.isfinite()
    output.loss.backward()
    assert model.seg_projector.linear_1.weight.grad.abs().sum() > 0


def test_the_card_names_parts_and_licences_and_says_that_nothing_was_learned(composed):
    card = (composed("lisa") / "README.md").read_text(encoding="utf-8")
    assert "# LISA (untrained)" in card
    assert "It has learned nothing yet" in card
    assert "| segmenter | sam_vit_tiny.pth | Apache-2.0 |" in card
    assert "ViT-H" not in card.partition("## Licences")[2], "SAM ViT-H is a part of the published LISA, not of this"
