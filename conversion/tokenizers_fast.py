"""Tokenizers of original folders that exist as `tokenizer.json` only: Llama 3's and Phi-3's.

The file already says how text becomes ids, so it is kept as it is; only `<image>` is added, which LLaVA cuts out of
the text before it encodes the rest.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from .errors import ConversionError
from .sources import read_optional_json
from .tokenizer_files import check_fast_tokenizers
from .tokenizers import IMAGE_TOKEN


_FILE = "tokenizer.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def build_fast_tokenizer(folder: Path, *, model_max_length: int | None = None) -> PreTrainedTokenizerFast:
    """
    Args:
        folder (`Path`): Holds `tokenizer.json` and, where they exist, `tokenizer_config.json`, `added_tokens.json` and
            `special_tokens_map.json`.
        model_max_length (`int`, *optional*): Longest input of the model in tokens, image tokens included.

    Returns:
        `PreTrainedTokenizerFast`: Gives the folder's own ids; `<image>` is the last token. Without a pad token of its
        own it pads with the end token, which no mask lets through.

    Raises:
        ConversionError: Files are missing or unreadable, or give a token two ids.
    """
    path = folder / _FILE
    if not path.is_file():
        raise ConversionError(
            f"There is no {_FILE}, and this model's tokenizer has no other form.",
            path=folder,
            next_step="Copy the tokenizer files of the original checkpoint into this folder.",
        )
    check_fast_tokenizers([path])
    backend = Tokenizer.from_file(str(path))
    config = read_optional_json(folder / "tokenizer_config.json")
    special_map = read_optional_json(folder / "special_tokens_map.json")
    for token, token_id in _added_tokens(folder, config):
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != token_id:
            raise ConversionError(
                f"The folder gives {token.content!r} the id {token_id}; it becomes "
                f"{backend.token_to_id(token.content)}: the files contradict each other.",
                path=folder,
                next_step="Copy the tokenizer files again from the original checkpoint.",
            )
    backend.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    names = {}
    for name in _NAMES:
        value = special_map.get(name) or config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if content is not None and backend.token_to_id(content) is not None:
            names[name] = content
    if missing := [name for name in ("bos_token", "eos_token") if name not in names]:
        raise ConversionError(
            f"The folder names no {' and no '.join(missing)} that the vocabulary has.",
            path=folder,
            next_step="Copy tokenizer_config.json of the original checkpoint into this folder.",
        )
    names.setdefault("pad_token", names["eos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **names,
        image_token=IMAGE_TOKEN,
        padding_side="right",
        model_max_length=model_max_length or int(1e30),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _added_tokens(folder: Path, config: dict) -> list[tuple[AddedToken, int]]:
    """Tokens that other files than tokenizer.json know of, with their ids, in order of ids."""
    found: dict[str, tuple[AddedToken, int]] = {}
    for content, token_id in read_optional_json(folder / "added_tokens.json").items():
        found[content] = (AddedToken(content, normalized=False, special=True), int(token_id))
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        options = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "normalized", "special")}
        found[entry["content"]] = (AddedToken(entry["content"], **options), int(token_id))
    return sorted(found.values(), key=lambda item: item[1])
