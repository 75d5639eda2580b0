"""Tokenizer, prompt format and image views of the embedded model."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ..processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from ..processing.processing_gsva import GsvaProcessor
from .requests import REJ_TOKEN, SEG_TOKEN, WORDS


PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"

CHAT_TEMPLATE = """
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'USER: ' -}}
    {%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
      {%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image> ' -}}{%- endfor -%}
      {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
    {%- endif -%}
  {%- else -%}
    {{- ' ASSISTANT:' -}}{%- generation -%}
    {%- if message['content'] is string -%}{{- ' ' + message['content'] + '</s>' -}}{%- else -%}
      {{- ' ' + message['content'][0]['text'] + '</s>' -}}
    {%- endif -%}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
""".strip()

WORDING = {
    "question": "What is {phrases}?",
    "questions": "What are {phrases}?",
    "answer": "{items}.",
    "answers": "{items}.",
    "item": "{phrase} {seg}",
    "lower_case": True,
    "strip_full_stops": True,
    "omit_space_after_phrases": False,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word or punctuation mark of the closed vocabulary; everything else is `<unk>`."""
    words = sorted({*WORDS, "user", "assistant", ":"})
    vocabulary = {word: number for number, word in enumerate([PAD, BOS, EOS, UNK, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=512,
    )
    # The slots are words of the answer; the placeholder is not and comes last, as in every converted checkpoint.
    fast.add_tokens([AddedToken(token, normalized=False, special=False) for token in (SEG_TOKEN, REJ_TOKEN)])
    fast.add_tokens([AddedToken(IMAGE, normalized=False, special=True)], special_tokens=True)
    return fast


def build_processor(vlm_side: int, vlm_patch: int, segmenter_side: int) -> GsvaProcessor:
    """
    Args:
        vlm_side, segmenter_side (`int`): Side of each square view in pixels.
        vlm_patch (`int`): Side of a patch of the vision-language model's view in pixels.
    """
    image_processor = ReasoningSegmentationImageProcessor(
        size={"shortest_edge": vlm_side},
        crop_size={"height": vlm_side, "width": vlm_side},
        segmenter_size={"longest_edge": segmenter_side},
    )
    return GsvaProcessor(
        image_processor,
        build_tokenizer(),
        patch_size=vlm_patch,
        template=None,
        chat_template=CHAT_TEMPLATE,
        wording=WORDING,
    )


def token_ids(processor: GsvaProcessor) -> dict[str, int]:
    """What the model's configuration must know about the vocabulary."""
    tokenizer = processor.tokenizer
    tokens = (SEG_TOKEN, REJ_TOKEN, IMAGE, BOS, EOS, PAD)
    return {"vocab_size": len(tokenizer), **{token: tokenizer.convert_tokens_to_ids(token) for token in tokens}}


__all__ = ["build_processor", "build_tokenizer", "token_ids"]
