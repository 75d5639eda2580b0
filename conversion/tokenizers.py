"""Turn the slow tokenizer of an original LLaMA-based folder into a saved fast one that gives the same ids."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor
from transformers.tokenization_utils_base import generate_merges

from .errors import ConversionError
from .file_type import check_side_file
from .sources import read_any_json
from .systems import LISA, SEG_TOKEN, SYSTEMS


IM_START_TOKEN = "<im_start>"
IM_END_TOKEN = "<im_end>"
IM_PATCH_TOKEN = "<im_patch>"
IMAGE_TOKEN = "<image>"
# The base of other checkpoints, whose tokenizer is rebuilt as theirs are.
LLAVA = "llava"

_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SPACE_PIECE = "▁"
# The last of several image tokens in a row, where something other than an added token follows.
_LAST_IMAGE = rf"{IMAGE_TOKEN}(?!{IMAGE_TOKEN})(?=.|\n)"
# sentencepiece_model.proto: TrainerSpec.ModelType and SentencePiece.Type
_BPE_MODEL = 2
_NORMAL_PIECE, _USER_DEFINED_PIECE = 1, 4
_NAMED_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_NO_LIMIT = int(1e30)
# Far above every published model: LLaMA has 32,000 pieces, which can be split in 200,000 ways.
_MAX_PIECES, _MAX_SPLITS = 1_000_000, 50_000_000


@dataclass(frozen=True)
class _Vocabulary:
    """The pieces of the base tokenizer, as `tokenizers.models.BPE` takes them."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    byte_fallback: bool
    dummy_prefix: bool
    user_defined: tuple[str, ...] = ()


def check_tokenizer_files(folder: Path) -> None:
    """Refuse tokenizer files that no library should be handed; those that are absent pass.

    Raises:
        ConversionError: One is a Git LFS pointer, too large, or no regular file.
    """
    for name in _TOKENIZER_FILES:
        check_side_file(folder / name)


def uses_im_start_end(config: Mapping[str, Any], *, default: bool) -> bool:
    """Whether prompts have `<im_start>` and `<im_end>` around the image.

    Args:
        config (`Mapping[str, Any]`): The original's `config.json`.
        default (`bool`): Without `mm_use_im_start_end` in it: true for LISA and GSVA, false for LLaVA.
    """
    return bool(config.get("mm_use_im_start_end", default))


def image_in_prompt(config: Mapping[str, Any], *, default: bool) -> str:
    """The image token as prompts have it; for the arguments see `uses_im_start_end`."""
    around = uses_im_start_end(config, default=default)
    return f"{IM_START_TOKEN}{IMAGE_TOKEN}{IM_END_TOKEN}" if around else IMAGE_TOKEN


def build_tokenizer(
    source_dir: str | os.PathLike,
    system: str = "lisa",
    *,
    use_im_start_end: bool = True,
    model_max_length: int | None = None,
    slot_tokens: tuple[str, ...] | None = None,
) -> PreTrainedTokenizerFast:
    """Build the fast tokenizer of a converted checkpoint.

    The text between added tokens is encoded as the slow LlamaTokenizer of the original did: each part on its own, with
    a dummy space in front (`legacy` in tokenizer_config.json, true where it is absent; for false, without it, as
    transformers does it since 4.33). White space around added tokens vanishes for LISA, whose transformers 4.31
    stripped it, and stays for GSVA (4.44). Task tokens are added only where the folder lacks them, in the original
    order; `<image>`, which the originals cut out before encoding, becomes the last token and never strips. The pad
    token is `<unk>`, as in both originals.

    Args:
        source_dir (`str` or `os.PathLike`):
            Folder with `tokenizer.model` (or, without it, a SentencePiece-style `tokenizer.json`) and, where they
            exist, `tokenizer_config.json`, `added_tokens.json`, `special_tokens_map.json`.
        system (`str`): Name of a system whose entry states its `slot_tokens`, or `"llava"`.
        use_im_start_end (`bool`): Whether the model knows `<im_start>` and `<im_end>` (`mm_use_im_start_end`).
        model_max_length (`int`, *optional*):
            Longest input of the model in tokens, image tokens included. The folder's own value is not used: it is a
            setting of the training script that counts the image as one token.
        slot_tokens (`tuple[str, ...]`, *optional*): Instead of those that the system's entry states.

    Returns:
        `PreTrainedTokenizerFast`: Needs neither sentencepiece nor protobuf once saved. `image_token` is an attribute.

    Raises:
        ConversionError: Files are missing, unreadable or contradict each other.
    """
    stated = _slot_tokens()
    if system not in stated:
        raise ConversionError(f"Unknown system {system!r}; tokenizers are built for {sorted(stated)}.")
    every_slot_token = {token for tokens in stated.values() for token in tokens}
    own_tokens = stated[system] if slot_tokens is None else slot_tokens
    folder = Path(source_dir)
    config = _read_object(folder / "tokenizer_config.json")
    special_map = _read_object(folder / "special_tokens_map.json")
    vocabulary = _read_vocabulary(folder)
    names = {name: _named_token(name, config, special_map) for name in _NAMED_TOKENS}
    saved = _read_added_tokens(folder, config)

    specials = {IM_START_TOKEN, IM_END_TOKEN, IM_PATCH_TOKEN, *names.values()} | _saved_specials(config, special_map)
    unstripped = {IMAGE_TOKEN, *_unstripped_tokens(names, special_map)}
    wanted = [*own_tokens, *((IM_START_TOKEN, IM_END_TOKEN) if use_im_start_end else ())]

    def added_token(content: str) -> AddedToken:
        strip = system == LISA.name and content not in unstripped
        special = content in specials and content not in every_slot_token
        return AddedToken(content, lstrip=strip, rstrip=strip, normalized=False, special=special)

    legacy = bool(config.get("legacy", True))
    backend = _backend(vocabulary, legacy, names["unk_token"])
    for content in names.values():
        if content not in vocabulary.vocab:
            raise ConversionError(f"The vocabulary lacks {content!r}.", path=folder)
        backend.add_tokens([added_token(content)])
    backend.add_tokens([added_token(content) for content in vocabulary.user_defined])
    for content, token_id in sorted(saved.items(), key=lambda item: item[1]):
        backend.add_tokens([added_token(content)])
        if backend.token_to_id(content) != token_id:
            raise ConversionError(
                f"The folder gives {content!r} the id {token_id}, but in the order of ids it becomes "
                f"{backend.token_to_id(content)}; ids are missing or doubled in added_tokens.json or "
                "tokenizer_config.json.",
                path=folder,
                next_step="Copy the tokenizer files again from the original checkpoint.",
            )
    backend.add_tokens([added_token(content) for content in wanted if backend.token_to_id(content) is None])
    # LLaVA encodes what follows the image on its own, so that it begins like a text, with a dummy space. Legacy
    # tokenizers put one after every added token; the others do so here, before they look for the token.
    space_after_image = not stated[system] and not legacy and vocabulary.dummy_prefix
    if space_after_image:
        backend.normalizer = normalizers.Replace(Regex(_LAST_IMAGE), f"{IMAGE_TOKEN} ")
    backend.add_tokens([AddedToken(IMAGE_TOKEN, normalized=space_after_image, special=True)])

    backend.decoder = _decoder(_added_contents(backend), separates_slots=system == LISA.name, dummy_prefix=legacy)
    backend.post_processor = _post_processor(backend, config, names)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **names,
        pad_token=names["unk_token"],
        image_token=IMAGE_TOKEN,
        padding_side="right",
        model_max_length=model_max_length or _NO_LIMIT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        legacy=legacy,
    )


def _slot_tokens() -> dict[str, tuple[str, ...]]:
    """What each training adds, in the order of its script (LISA train_ds.py, GSVA main.py)."""
    stated = {name: system.slot_tokens for name, system in SYSTEMS.items() if system.slot_tokens is not None}
    return {LLAVA: (), **stated}


def _backend(vocabulary: _Vocabulary, legacy: bool, unk_token: str) -> Tokenizer:
    backend = Tokenizer(
        BPE(
            vocab=vocabulary.vocab,
            merges=vocabulary.merges,
            unk_token=unk_token,
            fuse_unk=True,
            byte_fallback=vocabulary.byte_fallback,
        )
    )
    if legacy:
        # Metaspace would leave out the dummy space where a part starts with a space of its own; SentencePiece puts it.
        prefix = [normalizers.Prepend(_SPACE_PIECE)] if vocabulary.dummy_prefix else []
        backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE_PIECE)])
    else:
        scheme = "first" if vocabulary.dummy_prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE_PIECE, prepend_scheme=scheme, split=False)
    return backend


def _decoder(added: list[str], separates_slots: bool, dummy_prefix: bool) -> decoders.Decoder:
    """Undo the encoding as far as it can be undone.

    Args:
        added: Contents of all added tokens.
        separates_slots: Whether encoding lost the white space before slot tokens, so that one space is put there.
        dummy_prefix: Whether encoding put a space after every added token.
    """
    steps = [
        decoders.Replace(_SPACE_PIECE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(content=" ", left=1),
    ]
    if dummy_prefix:
        # A space before a letter may be a real one ("[SEG] and"): models also leave out the dummy where they write.
        tokens = "|".join(re.escape(content) for content in added)
        steps.append(decoders.Replace(Regex(rf"(?<={tokens}) (?=[\s.,;:!?)\]}}'\"])"), ""))
    if separates_slots:
        steps.append(decoders.Replace(Regex(rf"(?<=[^\s(\[{{'\"]){re.escape(SEG_TOKEN)}"), f" {SEG_TOKEN}"))
    return decoders.Sequence(steps)


def _post_processor(backend: Tokenizer, config: dict[str, Any], names: dict[str, str]) -> processors.PostProcessor:
    bos, eos = names["bos_token"], names["eos_token"]
    before = [bos] if config.get("add_bos_token", True) else []
    after = [eos] if config.get("add_eos_token", False) else []
    single = [*before, "$A", *after]
    return processors.TemplateProcessing(
        single=" ".join(single),
        pair=" ".join([*single, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]),
        special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos)],
    )


def _added_contents(backend: Tokenizer) -> list[str]:
    return [token.content for _, token in sorted(backend.get_added_tokens_decoder().items())]


def _read_vocabulary(folder: Path) -> _Vocabulary:
    model_file, json_file = folder / "tokenizer.model", folder / "tokenizer.json"
    if model_file.is_file():
        return _read_sentencepiece(model_file)
    if json_file.is_file():
        return _read_tokenizer_json(json_file)
    raise ConversionError(
        "There is neither tokenizer.model nor tokenizer.json.",
        path=folder,
        next_step="Copy the tokenizer files of the original checkpoint (or of its base LLaVA) into this folder.",
    )


def _read_sentencepiece(path: Path) -> _Vocabulary:
    try:
        proto = SentencePieceExtractor(str(path)).proto
    except ImportError:
        raise
    except Exception as error:  # protobuf's decode error is a different class in its C++ and Python backends
        raise ConversionError(
            f"Not a SentencePiece model ({type(error).__name__}: {error}).",
            path=path,
            next_step="Download the file again; a Git LFS pointer looks like this.",
        ) from error
    if proto.trainer_spec.model_type != _BPE_MODEL or proto.normalizer_spec.precompiled_charsmap:
        raise ConversionError(
            "This SentencePiece model is not a LLaMA one: it is not a BPE model or it rewrites characters "
            f"(model type {proto.trainer_spec.model_type}, normalisation {proto.normalizer_spec.name!r}).",
            path=path,
        )
    if proto.normalizer_spec.remove_extra_whitespaces:
        raise ConversionError("This SentencePiece model removes repeated spaces, which LLaMA's does not.", path=path)
    if len(proto.pieces) > _MAX_PIECES or sum(len(piece.piece) ** 2 for piece in proto.pieces) > _MAX_SPLITS:
        raise ConversionError(
            f"This SentencePiece model has {len(proto.pieces)} pieces, or longer ones than any language needs.",
            path=path,
            next_step="Copy the file again from the original publisher.",
        )
    vocab = {piece.piece: token_id for token_id, piece in enumerate(proto.pieces)}
    mergeable = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL_PIECE}
    return _Vocabulary(
        vocab=vocab,
        merges=generate_merges(vocab, mergeable),
        byte_fallback=proto.trainer_spec.byte_fallback,
        dummy_prefix=proto.normalizer_spec.add_dummy_prefix,
        user_defined=tuple(piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED_PIECE),
    )


def _read_tokenizer_json(path: Path) -> _Vocabulary:
    data = _read_object(path)
    model = data.get("model", {})
    normalizer, pre_tokenizer = json.dumps(data.get("normalizer")), json.dumps(data.get("pre_tokenizer"))
    if model.get("type") != "BPE" or '"ByteLevel"' in pre_tokenizer or '"Precompiled"' in normalizer:
        raise ConversionError(
            f"Not the tokenizer of a LLaMA-1 or LLaMA-2 model (model type {model.get('type')!r}).",
            path=path,
            next_step="Copy tokenizer.model of the original checkpoint into this folder.",
        )
    return _Vocabulary(
        vocab=model["vocab"],
        merges=[tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]],
        byte_fallback=bool(model.get("byte_fallback")),
        dummy_prefix='"Prepend"' in normalizer or '"Metaspace"' in pre_tokenizer,
    )


def _read_added_tokens(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Ids of the tokens that were added after training, by content."""
    sources = {
        "added_tokens.json": _read_object(folder / "added_tokens.json"),
        "tokenizer_config.json": {
            token["content"]: int(token_id) for token_id, token in config.get("added_tokens_decoder", {}).items()
        },
        "tokenizer.json": {
            token["content"]: token["id"] for token in _read_object(folder / "tokenizer.json").get("added_tokens", [])
        },
    }
    ids: dict[str, int] = {}
    for name, found in sources.items():
        for content, token_id in found.items():
            if ids.setdefault(content, token_id) != token_id:
                raise ConversionError(
                    f"{name} gives {content!r} the id {token_id}, another file of the folder {ids[content]}.",
                    path=folder,
                    next_step="Copy the tokenizer files again from the original checkpoint.",
                )
    return ids


def _named_token(name: str, config: dict[str, Any], special_map: dict[str, Any]) -> str:
    value = special_map.get(name) or config.get(name) or _NAMED_TOKENS[name]
    return value["content"] if isinstance(value, dict) else value


def _saved_specials(config: dict[str, Any], special_map: dict[str, Any]) -> set[str]:
    listed = [*special_map.get("additional_special_tokens", []), *config.get("additional_special_tokens", [])]
    contents = {token["content"] if isinstance(token, dict) else token for token in listed}
    decoder = config.get("added_tokens_decoder", {}).values()
    return contents | {token["content"] for token in decoder if token.get("special")}


def _unstripped_tokens(names: dict[str, str], special_map: dict[str, Any]) -> set[str]:
    """Named tokens around which transformers 4.31 kept white space: all but those saved as a plain string."""
    return {content for name, content in names.items() if not isinstance(special_map.get(name), str)}


def _read_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds, also one as large as a tokenizer.json; nothing where there is no such file."""
    value = read_any_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise ConversionError("The file must hold a JSON object.", path=path)
    return value
