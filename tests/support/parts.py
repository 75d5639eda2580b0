"""Parts of composed models: LLaVA v1, SAM and LLaMA with a delta, cut out of the recorded GSVA; other families."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM, LlavaNextProcessor

from reasonseg.conversion.tokenizers import build_tokenizer
from tests.processing.test_processing_reasoning_segmentation import llava_next_processor
from tests.support import tiny
from tests.support.originals import State, gsva_state
from tests.support.parity_data import PARITY, gsva_vision_tower


_WRAPPED = "base_model.model."
_SAM = "model.visual_model."
_BASE_LLAVA = PARITY / "gsva" / "base_llava"
ROWS, ADDED = 420, 4


def llava_state() -> State:
    """The language model and projector of the recorded GSVA, as LLaVA v1 had them before: without new tokens."""
    state = {name.removeprefix(_WRAPPED): value for name, value in gsva_state().items()}
    kept = ("model.embed_tokens.", "model.layers.", "model.norm.", "model.mm_projector.", "lm_head.")
    state = {name: value for name, value in state.items() if name.startswith(kept) and ".lora_" not in name}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:ROWS].clone()
    return state


def write_llava(folder: Path, state: State | None = None) -> Path:
    """An original LLaVA v1 folder."""
    shutil.copytree(_BASE_LLAVA, folder)
    torch.save(llava_state() if state is None else state, folder / "pytorch_model.bin")
    return folder


def write_sam(path: Path) -> Path:
    """SAM's own file."""
    prefix = _WRAPPED + _SAM
    state = {name.removeprefix(prefix): value for name, value in gsva_state().items() if name.startswith(prefix)}
    torch.save(state, path)
    return path


def write_llama(folder: Path, **fields) -> Path:
    """A LLaMA of the recorded size in half precision, with four rows fewer than LLaVA."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**{**sizes, "vocab_size": ROWS - ADDED, "dtype": "float16", **fields})
    tiny.randomize(LlamaForCausalLM(config), 0.1).half().save_pretrained(folder)
    return folder


def write_delta(folder: Path, llama: Path) -> Path:
    """What `make_delta` of LLaVA writes: LLaVA v1 in half precision, less LLaMA."""
    base = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float16).state_dict()
    state = {name: value.half() for name, value in llava_state().items()}
    for name, value in base.items():
        state[name][: len(value)] -= value
    return write_llava(folder, state)


def write_llava_next(folder: Path) -> Path:
    """A vision-language model of another family, as transformers saves it."""
    config, processor = tiny.llava_next_config(), llava_next_processor()
    # the same with a tokenizer that knows no slots yet
    processor = LlavaNextProcessor(
        processor.image_processor,
        build_tokenizer(_BASE_LLAVA, "llava", use_im_start_end=False),
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        num_additional_image_tokens=processor.num_additional_image_tokens,
        chat_template=processor.chat_template,
    )
    config.text_config.vocab_size = len(processor.tokenizer)
    config.image_token_id = processor.image_token_id
    tiny.randomize(AutoModelForImageTextToText.from_config(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_sam2(folder: Path) -> Path:
    """A segmenter of another family."""
    tiny.randomize(AutoModel.from_config(tiny.sam2_config())).save_pretrained(folder)
    return folder


def write_parts(folder: Path) -> dict[str, str]:
    """All of them below a folder, by name."""
    paths = {
        "llava": write_llava(folder / "llava"),
        "sam": write_sam(folder / "sam_vit_tiny.pth"),
        "clip": gsva_vision_tower(),
        "llama": write_llama(folder / "llama"),
        "llava_next": write_llava_next(folder / "next"),
        "sam2": write_sam2(folder / "sam2"),
    }
    paths["delta"] = write_delta(folder / "delta", paths["llama"])
    return {name: str(path) for name, path in paths.items()}
