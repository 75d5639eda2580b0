"""LISA, GSVA, and any other pair of models, before they have learned to segment: new tokens and a new projector.

An original LLaVA becomes what the originals' training scripts start from: their prompts, tokens and processors. Any
other vision-language model keeps its own processor and chat template, and gets the tokens.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import AddedToken, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ..processing.chat import GENERIC_WORDING, MARKED_IMAGE, build_chat_template
from ..processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from ..processing.processing_gsva import GSVA_WORDING
from ..processing.processing_lisa import LISA_WORDING
from ..processing.processing_reasoning_segmentation import ReasoningSegmentationProcessor
from .beginning import new_parameters
from .components import (
    SegmenterComponent,
    VlmComponent,
    add_llava_component,
    add_segmenter,
    add_vlm,
    is_original_llava,
)
from .compose import CompositionOptions
from .composed_card import composed_values
from .configs import generation_defaults, image_view, llava_config, text_config
from .convert import ConversionReport, Parts, convert
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import Location, locate
from .original_llava import LlavaSources, add_original_llava
from .plan import EMBEDDING, NewRows, Scheme, empty_model
from .rules_lisa_gsva import MM_PROJECTOR, PROJECTOR, SEGMENTER, TEXT_MODEL, VLM
from .systems import GSVA, LISA, REASONING_SEGMENTATION, REJ_TOKEN, SEG_TOKEN, PublishedSystem
from .tensor_operations import TensorOperations
from .tokenizers import IMAGE_TOKEN, build_tokenizer, check_tokenizer_files


_TEMPLATE = "llava_v1"
_OTHER_MODEL = "Pass another vision-language model, or download this one again."
_REMEDIES = {
    SEGMENTER: ("the segmenter", "Pass segmenter= with SAM's own file or a folder of transformers."),
    VLM: ("the vision-language model", "Pass a folder that holds all of its weights."),
}
_WORDINGS = {LISA.name: LISA_WORDING, GSVA.name: GSVA_WORDING}


class VlmOptions(CompositionOptions, total=False):
    """What the functions below take beside the segmenter, the folder and the seed. Names may be names on the Hub, also
    with `@revision`.

    Args:
        vlm (`str` or `os.PathLike`, *optional*): Any image-text-to-text model of transformers, or an original LLaVA.
        base, delta (`str` or `os.PathLike`, *optional*): Instead of `vlm`: LLaMA in the layout of transformers, and
            the delta of LLaVA to it.
        vision_tower (`str` or `os.PathLike`, *optional*): The CLIP model of an original LLaVA.
        projector (`str` or `os.PathLike`, *optional*): `mm_projector.bin` of a pretraining, for an original LLaVA,
            instead of its own.
        new_projector (`bool`, *optional*, defaults to `False`): Whether an original LLaVA gets a new projector instead
            of its own.
        template (`str`, *optional*): Prompt format of an original LLaVA: `"llava_v1"`, the default, or
            `"llava_llama_2"`.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type of the segmenter, by default float32.
    """

    vlm: Location | None
    base: Location | None
    delta: Location | None
    vision_tower: Location | None
    projector: Location | None
    new_projector: bool
    template: str | None
    segmenter_dtype: torch.dtype | str | None


@dataclass(frozen=True)
class VlmSources:
    """Which vision-language model is put in: the fields that [`VlmOptions`] explains."""

    vlm: Location | None = None
    base: Location | None = None
    delta: Location | None = None
    vision_tower: Location | None = None
    projector: Location | None = None
    new_projector: bool = False
    template: str | None = None

    @classmethod
    def split_off(cls, options: VlmOptions) -> tuple[VlmSources, dict[str, Any]]:
        """The model, and the options that say how the repository is written."""
        named = {own.name for own in fields(cls)}
        others = {name: value for name, value in options.items() if name not in named}
        return cls(**{name: value for name, value in options.items() if name in named}), others

    @property
    def as_options(self) -> dict[str, Any]:
        """By name, as the card takes them."""
        return {name: getattr(self, name) for name in ("vlm", "delta", "base", "vision_tower")}

    def folder(self) -> Path:
        """Where the model, or the delta, lies.

        Raises:
            ConversionError: None is named, or several are, or it cannot be found.
        """
        if (self.vlm is None) == (self.delta is None) or (self.base is None) != (self.delta is None):
            raise ConversionError(
                "A vision-language model is needed, or LLaMA and LLaVA's delta to it.",
                next_step="Pass vlm=, or base= with delta=.",
            )
        folder = locate(self.vlm if self.delta is None else self.delta)
        if not folder.is_dir():
            raise ConversionError("There is no such folder.", path=folder, next_step="Check the path of the model.")
        return folder

    def original_llava(self, folder: Path) -> LlavaSources | None:
        """Where an original LLaVA is read from; `None` for a model of transformers.

        Args:
            folder (`Path`): As `folder` returns it.

        Raises:
            ConversionError: Something cannot be found, or an option is for original LLaVAs alone.
        """
        if not is_original_llava(folder):
            self._refuse_options_of_originals(folder)
            return None
        if self.projector is not None and self.new_projector:
            raise ConversionError("Both projector= and new_projector= are given.", next_step="Give one of them.")
        tower = None if self.vision_tower is None else locate(self.vision_tower)
        if tower is not None and not tower.is_dir():
            raise ConversionError("There is no such folder.", path=tower, next_step="Check the path of vision_tower=.")
        return LlavaSources(
            folder,
            base=None if self.base is None else locate(self.base),
            vision_tower=tower,
            projector=None if self.projector is None else locate(self.projector),
            new_projector=self.new_projector,
        )

    def _refuse_options_of_originals(self, folder: Path) -> None:
        if self.delta is not None:
            raise ConversionError(
                "The delta is not that of a LLaVA in its authors' layout.",
                path=folder,
                next_step="Pass delta= with such as liuhaotian/LLaVA-7b-delta-v0, or the whole model as vlm=.",
            )
        given = ("vision_tower", "projector", "new_projector", "template")
        if named := [name for name in given if getattr(self, name)]:
            raise ConversionError(
                "This model is in the layout of transformers, with its tower, projector and chat template.",
                path=folder,
                next_step=f"Leave {' and '.join(f'{name}=' for name in named)} out.",
            )


def compose_lisa(
    *,
    segmenter: Location,
    out: str | os.PathLike,
    seed: int = 0,
    **options: Unpack[VlmOptions],
) -> ConversionReport:
    """Put a LISA together that has learned nothing yet.

    With an original LLaVA it is what the original's training starts from (`train_ds.py`): `[SEG]`, `<im_start>` and
    `<im_end>` are added where the tokenizer lacks them; their rows of both embeddings are drawn from a normal
    distribution with the config's `initializer_range`, as `resize_token_embeddings` of its transformers did; the
    projector (`text_hidden_fcs`) begins as `nn.Linear` does.

    Args:
        segmenter (`str` or `os.PathLike`): SAM's own file, or a SAM, SAM-HQ, SAM 2 or SAM 3 tracker of transformers.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        seed (`int`, *optional*, defaults to 0): Of all that is drawn.
        options: See [`VlmOptions`] and [`CompositionOptions`].

    Returns:
        `ConversionReport`: Where the tensors came from; `"new"` are those that were drawn.

    Raises:
        ConversionError: A part is missing, unreadable or does not fit; nothing is then left behind.
    """
    return _compose(LISA, (SEG_TOKEN,), segmenter, out, seed, options)


def compose_gsva(
    *,
    segmenter: Location,
    out: str | os.PathLike,
    seed: int = 0,
    **options: Unpack[VlmOptions],
) -> ConversionReport:
    """Put a GSVA together that has learned nothing yet: as [`compose_lisa`], with `[SEG]` and `[REJ]`.

    The original (`prepare_model_tokenizer.py`) draws a new projector between CLIP and the language model whatever
    LLaVA brings, and never trains it. Here LLaVA's own is kept; `new_projector=True` does as the original.

    Args:
        segmenter, out, seed, options: See [`compose_lisa`].
    """
    return _compose(GSVA, (SEG_TOKEN, REJ_TOKEN), segmenter, out, seed, options)


def compose_reasoning_segmentation(
    *,
    segmenter: Location,
    out: str | os.PathLike,
    reject: bool = False,
    seed: int = 0,
    **options: Unpack[VlmOptions],
) -> ConversionReport:
    """Put any vision-language model and any segmenter together, with `[SEG]`, and `[REJ]` where it is asked for.

    The model keeps its own prompts and processor; an original LLaVA gets those of transformers' LLaVA.

    Args:
        reject (`bool`, *optional*, defaults to `False`): Whether the model can say that a thing is not in the image.
        segmenter, out, seed, options: See [`compose_lisa`].
    """
    tokens = (SEG_TOKEN, REJ_TOKEN) if reject else (SEG_TOKEN,)
    return _compose(REASONING_SEGMENTATION, tokens, segmenter, out, seed, options)


def _compose(
    system: PublishedSystem,
    slot_tokens: tuple[str, ...],
    segmenter: Location,
    out: str | os.PathLike,
    seed: int,
    options: VlmOptions,
) -> ConversionReport:
    sources, written = VlmSources.split_off(options)

    def read_parts() -> Parts:
        inventory, folder = Inventory(), sources.folder()
        llava = sources.original_llava(folder)
        template = sources.template or _TEMPLATE
        if llava is None:
            vlm = _with_slot_tokens(add_vlm(inventory, folder), slot_tokens)
        elif system == REASONING_SEGMENTATION:
            vlm = add_llava_component(inventory, llava, template, slot_tokens)
        else:
            vlm = _add_llava_of(system, inventory, llava)
        drawer = add_segmenter(inventory, locate(segmenter))
        with refusing("No model can be built from these parts", path=folder, next_step=_OTHER_MODEL):
            model = build_composed_model(system, vlm, drawer, slot_tokens)
        with refusing("The processor cannot be built", path=folder, next_step=_OTHER_MODEL):
            is_original = llava is not None and system != REASONING_SEGMENTATION
            build = _original_processor if is_original else _any_processor
            processor = build(
                system, vlm, drawer, slot_tokens, template, None if llava is None else llava.vision_tower
            )
        return Parts(
            card=composed_values(system, {**sources.as_options, "segmenter": segmenter}),
            inventory=inventory,
            model=model,
            processor=processor,
            scheme=_scheme(model, inventory, vlm, seed),
            identity_projector=vlm.identity_projector,
            generation_config=vlm.generation_config,
            folders={"vision-language model": folder},
            new_tensors={
                **new_parameters(model, PROJECTOR, seed),
                **(new_projector_tensors(model, vlm, seed) if sources.new_projector else {}),
            },
        )

    return convert(system, None, out, read_parts, template=sources.template, **written)


# ---- the vision-language model -------------------------------------------------------------------------------------


def _add_llava_of(system: PublishedSystem, inventory: Inventory, sources: LlavaSources) -> VlmComponent:
    """LLaVA with the tokenizer of LISA or GSVA; its processor is made later, together with the segmenter's view."""
    llava = add_original_llava(inventory, sources)
    with refusing("The tokenizer cannot be rebuilt", path=sources.folder, next_step=_OTHER_MODEL):
        check_tokenizer_files(sources.folder)
        tokenizer = build_tokenizer(
            sources.folder,
            system.name,
            # The training scripts of both add these tokens, whatever LLaVA's config says.
            use_im_start_end=True,
            model_max_length=llava.config.get("max_position_embeddings"),
        )
    rows, known = inventory.shapes().get(EMBEDDING, (0,))[0], tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if not tokenizer.vocab_size <= rows <= known:
        raise ConversionError(
            f"The checkpoint's vocabulary has {rows} rows; its tokenizer has {tokenizer.vocab_size} entries, and "
            f"{known} with the tokens that are added.",
            path=sources.folder,
            next_step="Pass config, tokenizer and weights of one checkpoint.",
        )
    config = llava_config(
        llava.config,
        text_config(llava.config, tokenizer),
        llava.vision,
        image_token_id=known,
        mlp_projector=llava.mlp_projector,
    )
    return VlmComponent(
        config,
        tokenizer,
        generation_defaults(tokenizer),
        appended_rows=1,
        identity_projector=not llava.mlp_projector,
        new_rows=known - rows,
    )


def _with_slot_tokens(vlm: VlmComponent, slot_tokens: tuple[str, ...]) -> VlmComponent:
    """A model of transformers whose tokenizer knows the slot tokens."""
    tokenizer = vlm.processor.tokenizer
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in slot_tokens])
    text = vlm.config.get_text_config()
    # Some tokenizers have fewer tokens than the model has rows: those are there already.
    new_rows = max(0, len(tokenizer) - text.vocab_size)
    text.vocab_size += new_rows
    return replace(vlm, new_rows=new_rows)


def build_composed_model(
    system: PublishedSystem, vlm: VlmComponent, segmenter: SegmenterComponent, slot_tokens: tuple[str, ...]
) -> PreTrainedModel:
    """The composed model with the right sizes and no weights.

    Args:
        system (`PublishedSystem`): Which model it is.
        vlm ([`VlmComponent`]): Its processor, or tokenizer alone, knows the slot tokens.
        segmenter ([`SegmenterComponent`]): What draws.
        slot_tokens (`tuple[str, ...]`): `[SEG]` and, for models that reject, `[REJ]`.

    Returns:
        `PreTrainedModel`: On the meta device.
    """
    tokenizer = getattr(vlm.processor, "tokenizer", vlm.processor)
    ids = tokenizer.convert_tokens_to_ids(list(slot_tokens))
    config: PreTrainedConfig = system.config_class(
        vlm_config=vlm.config,
        segmenter_config=segmenter.config,
        **dict(zip(("seg_token_id", "rej_token_id"), ids, strict=False)),
    )
    return empty_model(system.model_class, config)


def _scheme(model: PreTrainedModel, inventory: Inventory, vlm: VlmComponent, seed: int) -> Scheme:
    """Where the rows of new tokens go, whatever the model calls its embeddings."""
    names = {id(value): name for name, value in model.named_parameters()}
    embedding = names[id(model.get_input_embeddings().weight)]
    head = names[id(model.get_output_embeddings().weight)]
    rows = inventory.shapes().get(embedding, (0,))[0]
    deviation = getattr(vlm.config.get_text_config(), "initializer_range", None) or 0.02
    new_rows = NewRows(rows, vlm.new_rows, deviation, seed)
    text_model = TEXT_MODEL if embedding == EMBEDDING else VLM
    return Scheme(VLM, text_model, SEGMENTER, _REMEDIES, embedding, head, vlm.appended_rows, new_rows)


def new_projector_tensors(model: PreTrainedModel, vlm: VlmComponent, seed: int) -> dict[str, TensorOperations]:
    """A new projector between CLIP and the language model of an original LLaVA, as `nn.Linear` begins.

    Args:
        model (`PreTrainedModel`): The composed model.
        vlm ([`VlmComponent`]): Says whether its second layer is the identity that LLaVA v1's one Linear needs.
        seed (`int`): Of the drawing.
    """
    layers = (f"{MM_PROJECTOR}linear_1.", *(() if vlm.identity_projector else (f"{MM_PROJECTOR}linear_2.",)))
    return {name: made for layer in layers for name, made in new_parameters(model, layer, seed).items()}


# ---- processors ----------------------------------------------------------------------------------------------------


def _original_processor(
    system: PublishedSystem,
    vlm: VlmComponent,
    segmenter: SegmenterComponent,
    slot_tokens: tuple[str, ...],
    template: str,
    tower: Path | None,
) -> ProcessorMixin:
    """That of a converted LISA or GSVA, with the view of the segmenter that is put in."""
    vision, view = vlm.config.vision_config, segmenter.image_processor
    image_processor = ReasoningSegmentationImageProcessor(
        **image_view(tower, vision.image_size),
        segmenter_size=view.size,
        segmenter_resample=view.resample,
        segmenter_image_mean=view.image_mean,
        segmenter_image_std=view.image_std,
    )
    return system.processor_class(
        image_processor=image_processor,
        tokenizer=vlm.processor,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=vlm.config.vision_feature_select_strategy,
        template=template,
        chat_template=build_chat_template(template, MARKED_IMAGE),
    )


def _any_processor(
    system: PublishedSystem,
    vlm: VlmComponent,
    segmenter: SegmenterComponent,
    slot_tokens: tuple[str, ...],
    template: str,
    tower: Path | None,
) -> ProcessorMixin:
    """The vision-language model's own, with the system's wording of phrases."""
    REASONING_SEGMENTATION.publish_code()
    return ReasoningSegmentationProcessor(
        vlm.processor,
        segmenter.image_processor,
        seg_token=SEG_TOKEN,
        rej_token=REJ_TOKEN if REJ_TOKEN in slot_tokens else None,
        wording=_wording(system),
    )


def _wording(system: PublishedSystem) -> dict[str, Any] | None:
    """The system's, but for what the originals' own prompts made of it: a space after the line break that follows the
    image, and GSVA's missing one, without which no published number was measured with other models."""
    if system.name not in _WORDINGS:
        return None
    own = _WORDINGS[system.name] | {"omit_space_after_phrases": False}
    own |= {name: own[name].strip() for name in ("question", "questions")}
    return {name: value for name, value in own.items() if value != GENERIC_WORDING[name]}


__all__ = [
    "VlmOptions",
    "VlmSources",
    "compose_gsva",
    "compose_lisa",
    "compose_reasoning_segmentation",
    "new_projector_tensors",
]
