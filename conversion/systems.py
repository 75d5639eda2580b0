"""One entry per system: what registration, public names, conversion, recognition, verification and commands know.

Classes and functions are named as `module:name` and imported when they are first used, so that this table costs
nothing to read. A further system is its own files and one entry in `SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..loading import import_object


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin


SEG_TOKEN, REJ_TOKEN = "[SEG]", "[REJ]"


@dataclass(frozen=True)
class Option:
    """An argument of a system's convert function, as `reasonseg convert` offers it.

    Args:
        name (`str`): Of the argument.
        help (`str`): What it is, in a line.
        kind (`Any`): `str`, `float`, `bool` for a switch, or a `Literal` of what is allowed.
        default (`Any`): What the function takes where it is left out; `None` where that depends on the sources.
        required (`bool`): Whether it must be given.
    """

    name: str
    help: str
    kind: Any = str
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Conversion:
    """`reasonseg convert <system>`.

    Args:
        convert (`str`): The convert function.
        help (`str`): What the command does.
        options (`tuple[Option, ...]`): The function's own arguments, beside those that all of them take; one of the
            same name replaces a common one.
        source_help (`str`), source_name (`str`, *optional*): What is converted, and its name in the usage line.
    """

    convert: str
    help: str
    options: tuple[Option, ...]
    source_help: str = "Original weights: folder or file, or ORG/NAME[/FILE][@REVISION] on the Hub."
    source_name: str | None = None


@dataclass(frozen=True)
class Composition:
    """`reasonseg compose --system <system>`, and `parts` of a training recipe.

    Args:
        compose (`str`): The function that puts parts together; it takes `out`, `seed` and the options as keywords.
        help (`str`): What is made of what.
        options (`tuple[Option, ...]`): The function's own arguments, beside `COMMON_PARTS`; one of the same name
            replaces a common one.
        parts (`Mapping[str, str]`): What the options that name a part stand for, such as "vision tower". The first one
            that is given holds the language model.
        one_of (`tuple[tuple[str, ...], ...]`): Options of which one group must be given as a whole and the others not
            at all.
        needs_training (`bool`): Whether anything in what is made begins with random numbers.
    """

    compose: str
    help: str
    options: tuple[Option, ...]
    parts: Mapping[str, str] = field(default_factory=dict)
    one_of: tuple[tuple[str, ...], ...] = ()
    needs_training: bool = True

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Its own and the common ones."""
        own = {option.name for option in self.options}
        return (*self.options, *(option for option in COMMON_PARTS if option.name not in own))


@dataclass(frozen=True)
class Recognition:
    """How tensor names tell what a checkpoint is.

    Args:
        keys (`tuple[str, ...]`): Patterns; each is found in some tensor's name.
        describe (`str`): Function that makes a `Recognised` of the shapes by name.
    """

    keys: tuple[str, ...]
    describe: str


@dataclass(frozen=True)
class PublishedSystem:
    """What a system is made of. Classes are named as `module:name`.

    Args:
        name (`str`): Such as `"lisa"`: what manifests, `model_cards/<name>.yaml` and, with hyphens, commands call it.
        title (`str`): What its authors call it.
        config, model, processor (`str`): The classes that load it. The code of those that are not transformers' own
            is published with it.
        does (`str`): What its models do, after "such models".
        commands (`tuple[str, ...]`): The commands of `reasonseg` that run its models, the one they are made for first.
        image_processor (`str`, *optional*): Its image processor, LISA's and GSVA's by default.
        other_image_processors (`tuple[str, ...]`): Those of its checkpoints on other vision-language models.
        auto_class (`str`, *optional*): The Auto class under which the model's code is published, `"AutoModel"` by
            default; configs of this package name it under others as well.
        slot_tokens (`tuple[str, ...]`, *optional*): Tokens its training adds to the tokenizer of its base, in this
            order; `None` where conversions keep the base's tokenizer.
        exports_trained (`bool`): Whether what training changed can be published without the base.
        conversion (`Conversion`, *optional*): How it is converted.
        composition (`Composition`, *optional*): How a model that has learned nothing yet is made of parts.
        original (`Recognition`, *optional*): How its original checkpoints are recognised.
        converted_keys (`tuple[str, ...]`): Patterns that identify its converted checkpoints; those of a composed
            model are recognised by its `config.json`.
    """

    name: str
    title: str
    config: str
    model: str
    processor: str
    does: str = field(kw_only=True)
    commands: tuple[str, ...] = field(kw_only=True)
    image_processor: str = field(
        default="reasonseg.processing.image_processing_reasoning_segmentation:ReasoningSegmentationImageProcessor",
        kw_only=True,
    )
    other_image_processors: tuple[str, ...] = field(default=(), kw_only=True)
    auto_class: str = field(default="AutoModel", kw_only=True)
    slot_tokens: tuple[str, ...] | None = field(default=None, kw_only=True)
    exports_trained: bool = field(default=False, kw_only=True)
    conversion: Conversion | None = field(default=None, kw_only=True)
    composition: Composition | None = field(default=None, kw_only=True)
    original: Recognition | None = field(default=None, kw_only=True)
    converted_keys: tuple[str, ...] = field(default=(), kw_only=True)

    @cached_property
    def config_class(self) -> type[PreTrainedConfig]:
        return import_object(self.config)

    @cached_property
    def model_class(self) -> type[PreTrainedModel]:
        return import_object(self.model)

    @cached_property
    def processor_class(self) -> type[ProcessorMixin]:
        return import_object(self.processor)

    @cached_property
    def image_processor_class(self) -> type[BaseImageProcessor]:
        return import_object(self.image_processor)

    @cached_property
    def other_image_processor_classes(self) -> tuple[type[BaseImageProcessor], ...]:
        return tuple(map(import_object, self.other_image_processors))

    @property
    def model_type(self) -> str:
        """What its `config.json` says."""
        return self.config_class.model_type

    @property
    def command_name(self) -> str:
        """What `reasonseg convert` calls it."""
        return self.name.replace("_", "-")

    @property
    def is_known_to_transformers(self) -> bool:
        """Whether transformers has such a model, so that converted repositories load without this package's code."""
        return self.config.startswith("transformers")

    def public_names(self) -> Iterator[tuple[str, str]]:
        """What `reasonseg` offers of it: names and the modules that hold them."""
        functions = [] if self.conversion is None else [self.conversion.convert]
        functions += [] if self.composition is None else [self.composition.compose]
        image_processors = (self.image_processor, *self.other_image_processors)
        for reference in (self.config, self.model, self.processor, *image_processors, *functions):
            module, name = reference.split(":")
            if not module.startswith("transformers"):
                yield name, module

    def publish_code(self) -> None:
        """Have `save_pretrained` copy the code of its classes beside the weights."""
        classes = [
            ("AutoConfig", self.config_class),
            (self.auto_class, self.model_class),
            ("AutoProcessor", self.processor_class),
            ("AutoImageProcessor", self.image_processor_class),
            *(("AutoImageProcessor", own) for own in self.other_image_processor_classes),
        ]
        for auto_class, own in classes:
            if not is_of_transformers(own):
                own.register_for_auto_class(auto_class)


def is_of_transformers(own: type) -> bool:
    """Whether everybody who has transformers has a class, so that its code need not be published."""
    return own.__module__.split(".")[0] == "transformers"


_DTYPES = Literal["float32", "bfloat16", "float16"]
_SAM = Option("sam", "SAM's own file, or ORG/NAME/FILE on the Hub, for a source without SAM's encoder.")
_SEGMENTER_DTYPE = Option("segmenter_dtype", "Store the segmenter so.  [default: float32]", _DTYPES)
_TEMPLATE = Option(
    "template",
    "Prompt template the checkpoint was trained with.",
    Literal["llava_v1", "llava_llama_2"],
    default="llava_v1",
)

_HEADS = Option("heads", "paper, mean, or numbers such as 3,17.  [default: paper for LLaVA, else mean]")
_PHRASE_EXTRACTOR = Option(
    "phrase_extractor",
    "auto, spacy, spacy:PIPELINE or rules: what finds noun phrases.",
    default="auto",
)
_VLM = Option(
    "vlm",
    "Vision-language model: folder of transformers or of an original LLaVA, or ORG/NAME[@REVISION].",
)
_SEGMENTER = Option(
    "segmenter",
    "SAM's own file, or a SAM, SAM-HQ, SAM 2 or SAM 3 tracker of transformers; also on the Hub.",
    required=True,
)
# What a vision-language model that is put in may be.
_VLM_OPTIONS = (
    _VLM,
    Option("base", "With --delta, instead of --vlm: LLaMA in the layout of transformers."),
    Option("delta", "With --base, instead of --vlm: LLaVA's delta weights, which are added to LLaMA's."),
    Option("vision_tower", "CLIP of an original LLaVA (openai/clip-vit-large-patch14)."),
    Option("projector", "mm_projector.bin of a pretraining, instead of an original LLaVA's own."),
    Option("new_projector", "Give an original LLaVA a new projector instead of its own.", bool, default=False),
    Option(
        "template",
        "Prompt template of an original LLaVA.  [default: llava_v1]",
        Literal["llava_v1", "llava_llama_2"],
    ),
)
_VLM_WAYS = (("vlm",), ("base", "delta"))
_PARTS = {
    "vlm": "vision-language model",
    "delta": "delta of the language model",
    "base": "base of the language model",
    "vision_tower": "vision tower",
    "segmenter": "segmenter",
}

COMMON_OPTIONS = (
    Option("dtype", "Store the language model so.  [default: as it is]", _DTYPES),
    Option("max_shard_size", "Largest weight file.", default="5GB"),
    Option("card", "Name of the model card's values.  [default: the source's name]"),
)
"""What every convert function takes."""

COMMON_PARTS = (
    Option("seed", "Of everything that is drawn: the same seed gives the same bytes.", int, default=0),
    Option("dtype", "Store the vision-language model so.  [default: as it is]", _DTYPES),
    *COMMON_OPTIONS[1:2],
    Option("card", "Values file of the model card.  [default: what is known of the parts]"),
)
"""What every function of a [`Composition`] takes."""

REASONING_SEGMENTATION = PublishedSystem(
    "reasoning_segmentation",
    "reasoning segmentation",
    "reasonseg.modeling.configuration_reasoning_segmentation:ReasoningSegmentationConfig",
    "reasonseg.modeling.modeling_reasoning_segmentation:ComposedForReasoningSegmentation",
    "reasonseg.processing.processing_reasoning_segmentation:ReasoningSegmentationProcessor",
    does="write an answer and draw a mask for every [SEG] in it",
    commands=("segment", "ask"),
    composition=Composition(
        "reasonseg.conversion.compose_reasoning_segmentation:compose_reasoning_segmentation",
        "Any vision-language model, any segmenter, and a new projector between them.",
        (
            *_VLM_OPTIONS,
            _SEGMENTER,
            Option("reject", "Add [REJ] as well, for what is not in the image.", bool, default=False),
            _SEGMENTER_DTYPE,
        ),
        parts=_PARTS,
        one_of=_VLM_WAYS,
    ),
)
LISA = PublishedSystem(
    "lisa",
    "LISA",
    "reasonseg.modeling.configuration_lisa:LisaConfig",
    "reasonseg.modeling.modeling_lisa:LisaForReasoningSegmentation",
    "reasonseg.processing.processing_lisa:LisaProcessor",
    does=REASONING_SEGMENTATION.does,
    commands=REASONING_SEGMENTATION.commands,
    slot_tokens=(SEG_TOKEN,),
    exports_trained=True,
    conversion=Conversion(
        "reasonseg.conversion.convert_lisa:convert_lisa",
        "Convert a LISA checkpoint: a published folder, or what zero_to_fp32.py wrote.",
        (
            Option(
                "vision_tower",
                "CLIP model: folder, or name on the Hub (openai/clip-vit-large-patch14).",
                required=True,
            ),
            Option("base", "Base LLaVA, folder or ORG/NAME[@REVISION]: config, tokenizer, if not there."),
            _SAM,
            Option("lora_alpha", "LoRA alpha of an unmerged source.", float, default=16.0),
            _SEGMENTER_DTYPE,
            _TEMPLATE,
        ),
    ),
    composition=Composition(
        "reasonseg.conversion.compose_reasoning_segmentation:compose_lisa",
        "What LISA's training starts from: LLaVA, SAM, [SEG] and a new projector.",
        (*_VLM_OPTIONS, _SEGMENTER, _SEGMENTER_DTYPE),
        parts=_PARTS,
        one_of=_VLM_WAYS,
    ),
    original=Recognition(
        (r"(^|\.)text_hidden_fcs\.0\.[02]\.",), "reasonseg.conversion.rules_lisa_gsva:recognise_llava_family"
    ),
)
GSVA = PublishedSystem(
    "gsva",
    "GSVA",
    "reasonseg.modeling.configuration_gsva:GsvaConfig",
    "reasonseg.modeling.modeling_gsva:GsvaForReasoningSegmentation",
    "reasonseg.processing.processing_gsva:GsvaProcessor",
    does=REASONING_SEGMENTATION.does,
    commands=REASONING_SEGMENTATION.commands,
    slot_tokens=(SEG_TOKEN, REJ_TOKEN),
    exports_trained=True,
    conversion=Conversion(
        "reasonseg.conversion.convert_gsva:convert_gsva",
        "Convert a GSVA checkpoint: a released .bin, or what zero_to_fp32.py wrote.",
        (
            Option("base", "Base LLaVA, folder or ORG/NAME[@REVISION]: config and tokenizer.", required=True),
            Option("vision_tower", "CLIP folder or ORG/NAME: config, and weights if not there."),
            _SAM,
            Option("lora_alpha", "LoRA alpha.  [default: 16 for the released ranks 8 and 64]", float),
            _SEGMENTER_DTYPE,
            _TEMPLATE,
        ),
    ),
    composition=Composition(
        "reasonseg.conversion.compose_reasoning_segmentation:compose_gsva",
        "What GSVA's training starts from: LLaVA, SAM, [SEG], [REJ] and a new projector.",
        (*_VLM_OPTIONS, _SEGMENTER, _SEGMENTER_DTYPE),
        parts=_PARTS,
        one_of=_VLM_WAYS,
    ),
    original=LISA.original,  # only the size of the vocabulary tells the two apart
)
SA2VA = PublishedSystem(
    "sa2va",
    "Sa2VA",
    "reasonseg.modeling.configuration_sa2va:Sa2VaConfig",
    "reasonseg.modeling.modeling_sa2va:Sa2VaForReasoningSegmentation",
    "reasonseg.processing.processing_sa2va:Sa2VaProcessor",
    does=REASONING_SEGMENTATION.does,
    commands=REASONING_SEGMENTATION.commands,
    image_processor="reasonseg.processing.image_processing_sa2va:Sa2VaImageProcessor",
    other_image_processors=("reasonseg.processing.image_processing_sa2va_tiles:Sa2VaTileImageProcessor",),
    conversion=Conversion(
        "reasonseg.conversion.convert_sa2va:convert_sa2va",
        "Convert a Sa2VA checkpoint on Qwen-VL, LLaVA-1.5 or InternVL, with SAM 2 or 3; runs none of its code.",
        (
            Option("sam_options", "Sizes of an image encoder that is none of the published ones, as JSON."),
            _SEGMENTER_DTYPE,
        ),
        source_help="Published folder, or ORG/NAME[@REVISION] on the Hub (ByteDance/Sa2VA-Qwen3-VL-4B).",
    ),
    original=Recognition((r"^grounding_encoder\.sam2_model\.",), "reasonseg.conversion.rules_sa2va:recognise_sa2va"),
)
IVM = PublishedSystem(
    "ivm",
    "IVM",
    "reasonseg.modeling.configuration_ivm:IvmConfig",
    "reasonseg.modeling.modeling_ivm:IvmForVisualMasking",
    "reasonseg.processing.processing_ivm:IvmProcessor",
    does="draw what an instruction needs and write no text",
    commands=("mask", "segment"),
    conversion=Conversion(
        "reasonseg.conversion.convert_ivm:convert_ivm",
        "Convert an IVM checkpoint: IVM-V1.0.bin (trained parts), or a dump of the whole module.",
        (
            Option(
                "base",
                "LLaVA-1.5 of transformers: folder, or ORG/NAME[@REVISION] (llava-hf/llava-1.5-7b-hf).",
                required=True,
            ),
            _SAM,
            Option("lora_alpha", "LoRA alpha.  [default: 16 for the released rank 8]", float),
            Option(
                "keep_lora",
                "Keep the LoRA as a PEFT adapter beside the weights; needs peft.",
                bool,
                default=False,
            ),
            _SEGMENTER_DTYPE,
        ),
    ),
    composition=Composition(
        "reasonseg.conversion.compose_ivm:compose_ivm",
        "What IVM's training starts from: LLaVA-1.5 of transformers, SAM's encoder, a new decoder.",
        (
            Option(
                "vlm",
                "LLaVA-1.5 of transformers: folder, or ORG/NAME[@REVISION] (llava-hf/llava-1.5-7b-hf).",
                required=True,
            ),
            Option("segmenter", "SAM's own file, or a SAM of transformers; also on the Hub.", required=True),
            _SEGMENTER_DTYPE,
        ),
        parts={"vlm": "vision-language model", "segmenter": "image encoder of the segmenter"},
    ),
    original=Recognition((r"^prompt_encoder\.text_proj\.",), "reasonseg.conversion.rules_ivm:recognise_ivm"),
)
VIP_LLAVA = PublishedSystem(
    "vip_llava",
    "ViP-LLaVA",
    "transformers:VipLlavaConfig",
    "reasonseg.modeling.modeling_vip_llava:VipLlavaForConditionalGeneration",
    "reasonseg.processing.processing_vip_llava:VipLlavaProcessor",
    does="answer in text and draw no masks",
    commands=("ask",),
    image_processor="reasonseg.processing.image_processing_vip_llava:VipLlavaImageProcessor",
    # The config is transformers' own, and so is what AutoModel makes of it: the model without its head.
    auto_class="AutoModelForImageTextToText",
    slot_tokens=(),
    conversion=Conversion(
        "reasonseg.conversion.convert_vip_llava:convert_vip_llava",
        "Convert a ViP-LLaVA checkpoint, on Vicuna, Llama 3 or Phi-3, to transformers' VipLlava.",
        (
            Option(
                "vision_tower",
                "CLIP folder, or ORG/NAME (openai/clip-vit-large-patch14-336), if there is none inside.",
            ),
            Option(
                "template",
                "Prompt template.  [default: the language model's]",
                Literal["llava_v1", "llava_llama_3", "llava_phi_3"],
            ),
        ),
        source_help="Original checkpoint: folder, or ORG/NAME[@REVISION] on the Hub.",
    ),
    composition=Composition(
        "reasonseg.conversion.compose_vip_llava:compose_vip_llava",
        "A language model, CLIP, and a new projector between them.",
        (
            Option(
                "language_model",
                "Vicuna, Llama 3 or Phi-3: folder, or ORG/NAME[@REVISION] (lmsys/vicuna-7b-v1.5).",
                required=True,
            ),
            Option(
                "vision_tower",
                "CLIP model: folder, or ORG/NAME[@REVISION] (openai/clip-vit-large-patch14-336).",
                required=True,
            ),
            Option(
                "template",
                "Prompt template of the language model.",
                Literal["llava_v1", "llava_llama_3", "llava_phi_3"],
                default="llava_v1",
            ),
        ),
        parts={"language_model": "language model", "vision_tower": "vision tower"},
    ),
    original=Recognition(
        (r"^model\.mm_projector\.clip_layernorm\.",), "reasonseg.conversion.rules_vip_llava:recognise_vip_llava"
    ),
    converted_keys=(r"(^|\.)projector_layernorm\.",),
)
IMPLICIT_CAPTION = "implicit_caption"
_DIFFUSION = Option(
    "diffusion", "Stable Diffusion 1.5 in diffusers' layout: folder, or ORG/NAME[@REVISION].", required=True
)
_DIFFLMM_TOWER = Option(
    "vision_tower",
    "CLIP model: folder, or ORG/NAME[@REVISION] (openai/clip-vit-large-patch14-336).",
    required=True,
)
_DIFFLMM_TEMPLATE = Option(
    "template",
    "Prompt template; the original was trained in vicuna_v1, and its scripts ask in llava_v1.",
    Literal["llava_v1", "vicuna_v1"],
    default="llava_v1",
)
DIFFLMM = PublishedSystem(
    "difflmm",
    "DiffLMM",
    "reasonseg.modeling.configuration_difflmm:DiffLmmConfig",
    "reasonseg.modeling.modeling_difflmm:DiffLmmForConditionalGeneration",
    "reasonseg.processing.processing_difflmm:DiffLmmProcessor",
    does=VIP_LLAVA.does,
    commands=VIP_LLAVA.commands,
    image_processor="reasonseg.processing.image_processing_vip_llava:DiffLmmImageProcessor",
    slot_tokens=(),
    conversion=Conversion(
        "reasonseg.conversion.convert_difflmm:convert_difflmm",
        "Merge a DiffLMM adapter with its language model, Stable Diffusion and CLIP. Needs diffusers.",
        (
            Option(
                "base",
                "Language model with its weights: folder, or ORG/NAME[@REVISION] (lmsys/vicuna-7b-v1.5).",
                required=True,
            ),
            _DIFFUSION,
            _DIFFLMM_TOWER,
            Option("dtype", "Store all weights so.  [default: as the base is]", _DTYPES),
            _DIFFLMM_TEMPLATE,
        ),
        source_help="Folder with adapter_model and non_lora_trainables, or ORG/NAME[@REVISION]",
    ),
    composition=Composition(
        "reasonseg.conversion.compose_difflmm:compose_difflmm",
        "A language model, Stable Diffusion and CLIP, and a new projector between them. Needs diffusers.",
        (
            Option(
                "language_model",
                "A LLaMA with its weights: folder, or ORG/NAME[@REVISION] (lmsys/vicuna-7b-v1.5).",
                required=True,
            ),
            _DIFFUSION,
            _DIFFLMM_TOWER,
            replace(_DIFFLMM_TEMPLATE, default="vicuna_v1"),
            Option(
                "diffusion_text",
                "Text that conditions the diffusion: implicit_caption, learned from CLIP's features, or empty.",
                Literal["implicit_caption", "empty"],
                default=IMPLICIT_CAPTION,
            ),
            Option("no_concat_clip", "Leave CLIP's features out of the image tokens.", bool, default=False),
            Option("no_position_embeddings", "Learn no position embeddings.", bool, default=False),
            Option("normalize_once", "Give both towers the pixels they were made for.", bool, default=False),
            Option("diffusion_block", "Index of the UNet's up block whose output is used.", int, default=1),
            Option("timestep", "Diffusion step whose share of noise the latents get.", int, default=100),
            Option("ensemble_size", "Noises per image over which features are averaged.", int, default=1),
            Option("image_size", "Side of the square images in pixels.", int, default=384),
        ),
        parts={
            "language_model": "language model",
            "diffusion": "diffusion model",
            "vision_tower": "vision tower",
        },
    ),
    original=Recognition((r"\.mm_projector\.clip_pe",), "reasonseg.conversion.rules_difflmm:recognise_difflmm"),
    converted_keys=(r"^model\.diffusion\.",),
)
ATTEND_AND_SEGMENT = PublishedSystem(
    "attend_and_segment",
    "attend-and-segment",
    "reasonseg.modeling.configuration_attend_and_segment:AttendAndSegmentConfig",
    "reasonseg.modeling.modeling_attend_and_segment:AttendAndSegmentForReasoningSegmentation",
    "reasonseg.processing.processing_attend_and_segment:AttendAndSegmentProcessor",
    does="write an answer and draw a mask for every phrase in it",
    commands=("segment", "ask"),
    conversion=Conversion(
        "reasonseg.conversion.convert_attend_and_segment:convert_attend_and_segment",
        "Put any vision-language model and any SAM into one repository that grounds every phrase it writes.",
        (
            Option(
                "sam", "SAM's own file, or a SAM, SAM-HQ or SAM 2 of transformers; also on the Hub.", required=True
            ),
            Option("vision_tower", "CLIP of an original LLaVA-1.5 (openai/clip-vit-large-patch14-336)."),
            _HEADS,
            _PHRASE_EXTRACTOR,
            _SEGMENTER_DTYPE,
            _TEMPLATE,
        ),
        source_help="Vision-language model: folder of transformers or of an original LLaVA-1.5, or "
        "ORG/NAME[@REVISION].",
        source_name="VLM",
    ),
    composition=Composition(
        "reasonseg.conversion.compose_attend_and_segment:compose_attend_and_segment",
        "Any vision-language model and any segmenter; nothing has to be trained.",
        (*_VLM_OPTIONS, _SEGMENTER, _HEADS, _PHRASE_EXTRACTOR, _SEGMENTER_DTYPE),
        parts=_PARTS,
        one_of=_VLM_WAYS,
        needs_training=False,
    ),
)
COORDINATES = PublishedSystem(
    "coordinates",
    "coordinates as text",
    "reasonseg.modeling.configuration_coordinates:CoordinatesConfig",
    "reasonseg.modeling.modeling_coordinates:CoordinatesForReasoningSegmentation",
    "reasonseg.processing.processing_coordinates:CoordinatesProcessor",
    does="write boxes and points and draw a mask for every object that these name",
    commands=("segment", "ask"),
    composition=Composition(
        "reasonseg.conversion.compose_coordinates:compose_coordinates",
        "Any vision-language model that writes boxes or points, and any segmenter; nothing has to be trained.",
        (
            Option(
                "vlm",
                "Vision-language model: folder of transformers, or ORG/NAME[@REVISION] (Qwen3-VL, VisionReasoner).",
                required=True,
            ),
            _SEGMENTER,
            Option(
                "coordinate_format",
                "How the model writes coordinates.  [default: what its name or type says]",
                Literal[
                    "qwen2_5_vl",
                    "qwen3_vl",
                    "internvl",
                    "molmo",
                    "seg_zero",
                    "vision_reasoner",
                    "star",
                    "star_qwen3",
                ],
            ),
            Option("adapter", "LoRA of the model, which is merged into it (StAR): folder, file, or on the Hub."),
            Option("lora_alpha", "Its alpha.  [default: what adapter_config.json says]", float),
            _SEGMENTER_DTYPE,
        ),
        parts={"vlm": "vision-language model", "adapter": "adapter", "segmenter": "segmenter"},
        needs_training=False,
    ),
)

SYSTEMS: dict[str, PublishedSystem] = {
    system.name: system
    for system in (
        REASONING_SEGMENTATION,
        LISA,
        GSVA,
        SA2VA,
        IVM,
        VIP_LLAVA,
        DIFFLMM,
        ATTEND_AND_SEGMENT,
        COORDINATES,
    )
}


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint that is not a system of its own but a source of others.

    Args:
        recognition (`Recognition`): How it is recognised.
        belongs (`str`): Where it is passed, in a sentence.
    """

    recognition: Recognition
    belongs: str


SOURCE_MODELS: dict[str, SourceModel] = {
    "llava": SourceModel(
        Recognition(
            (r"^(model\.embed_tokens|base_model\.model\.model|model\.layers)\.",),
            "reasonseg.conversion.rules_lisa_gsva:recognise_llava_family",
        ),
        "This is a LLaVA, the base of other checkpoints, which is passed as base=.",
    ),
    "clip": SourceModel(
        Recognition(
            (r"^(vision_model|text_model|pre_layrnorm)\.",), "reasonseg.conversion.rules_lisa_gsva:recognise_clip"
        ),
        "This is a CLIP model: it is passed as vision_tower=.",
    ),
    "sam": SourceModel(
        Recognition((r"^image_encoder\.", r"^mask_decoder\."), "reasonseg.conversion.rules_lisa_gsva:recognise_sam"),
        "This is a SAM: it is passed as sam=.",
    ),
}
