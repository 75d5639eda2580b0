"""Attend-and-segment: attention maps of the words a model writes become prompts of a segmenter (arXiv 2410.08209)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .attention_maps import (
    AttentionMapCollector,
    AttentionReducer,
    ImageColumns,
    no_attention_reduced,
    predicting_positions,
    reduce_attentions,
)
from .composed_model import ComposedModel, ImageCache, resolve_image_index
from .configuration_attend_and_segment import AttendAndSegmentConfig, check_pointing_option
from .key_value_cache import ReadPrompts
from .outputs import (
    ReasoningSegmentationOutput,
    answer_ids,
    check_ranges,
    find_cache,
    language_fields,
    output_or_tuple,
    stop_ids_of,
)
from .phrase_drawing import Grids, TokenGroup, draw_phrases


# (ids of an answer, its input row) -> phrases with `tokens`
PhraseFinder = Callable[[list[int], int], Sequence]

_GRID_NAMES = ("grid_sizes", "grid_boxes", "grid_tokens")
_OPTION_NAMES = (
    "heads",
    "attention_layers",
    "subtract_mean",
    "remove_corners",
    "prompt",
    "attention_temperature",
    "box_threshold",
    "mask_choice",
)
# What decodes several tokens per pass or runs other passes in between, so that no single map belongs to a token.
_UNSUPPORTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


@dataclass
class AttendAndSegmentOutput(ReasoningSegmentationOutput):
    """
    What [`AttendAndSegmentForReasoningSegmentation`] returns. A slot is one phrase of the answer; lists have one entry
    per row.

    Args:
        attention_maps (`list[torch.FloatTensor]` of shapes `(tokens, grid_rows, grid_columns)`):
            What each token of the answer looked at when it was predicted, its end token included; raw, all positive.
        phrases (`list[list]`): What the phrase finder returned for each row, one entry per mask.
        phrase_maps (`list[torch.FloatTensor]` of shapes `(phrases, grid_rows, grid_columns)`):
            The map of each phrase; with `subtract_mean` the mean map of the answer is taken off.
        grid_boxes (`torch.FloatTensor` of shape `(rows, 4)`):
            What part of the image the grid covers, `(x1, y1, x2, y2)` in its pixels.
        points (`list[torch.LongTensor]` of shapes `(phrases, 2)`, *optional*):
            Point prompts, `(x, y)` in pixels of the image.
        boxes (`list[torch.LongTensor]` of shapes `(phrases, 4)`, *optional*):
            Box prompts there, `(x1, y1, x2, y2)`, x2 and y2 after the last pixel.
        candidate_masks (`list[torch.FloatTensor]` of shapes `(phrases, candidates, height, width)`):
            All masks the segmenter offered, as logits; `pred_masks` is one of each.
        candidate_scores (`list[torch.FloatTensor]` of shapes `(phrases, candidates)`): Their scores.
        slot_probs, rejected: 0.0 and True for a phrase that was found nowhere, so that nothing was drawn for it: with
            `prompt="box"` one for which no pixel lies above `box_threshold`. 1.0 for all others.
    """

    attention_maps: list[torch.FloatTensor] | None = None
    phrases: list[list] | None = None
    phrase_maps: list[torch.FloatTensor] | None = None
    grid_boxes: torch.FloatTensor | None = None
    points: list[torch.LongTensor] | None = None
    boxes: list[torch.LongTensor] | None = None
    candidate_masks: list[torch.FloatTensor] | None = None
    candidate_scores: list[torch.FloatTensor] | None = None


class AttendAndSegmentForReasoningSegmentation(ComposedModel):
    r"""
    A stock image-text-to-text model and a stock segmenter that were never trained together.

    While the model writes, the attention from each new token to the image is reduced to one small map. Every noun
    phrase of the answer, as a *phrase finder* names them, gets the mean map of its tokens; that becomes a point, a box
    or a soft mask, and the segmenter draws. The processor brings the finder and the geometry of the grid along, so
    that `model.generate_with_masks(**inputs)` is all there is to call.

    Args:
        config ([`AttendAndSegmentConfig`]): What to compose, and how to point.
    """

    config: AttendAndSegmentConfig
    config_class = AttendAndSegmentConfig
    # The language model must compute its attention weights, which only the plain implementation returns.
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: AttendAndSegmentConfig):
        config.get_text_config()._attn_implementation = "eager"
        super().__init__(config)
        self.segmenter = self._build_segmenter()
        self.vlm = self._build_vlm()
        language_config = self.vlm.get_decoder().config
        if language_config._attn_implementation != "eager":
            language_config._attn_implementation = "eager"
        self.post_init()

    # ---- images and their grids ---------------------------------------------------------------------------------

    def encode_image(
        self,
        *args,
        grid_sizes: torch.LongTensor | None = None,
        grid_boxes: torch.FloatTensor | None = None,
        grid_tokens: torch.LongTensor | None = None,
        **kwargs,
    ) -> ImageCache:
        """As [`ComposedModel.encode_image`]; also remembers the grids that the processor returned."""
        images = super().encode_image(*args, **kwargs)
        images.grids = _given_grids(grid_sizes, grid_boxes, grid_tokens) or None
        return images

    def _image_input_names(self) -> set[str]:
        return super()._image_input_names() | set(_GRID_NAMES)

    def _grids(
        self,
        given: dict[str, torch.Tensor],
        images: ImageCache,
        input_ids: torch.LongTensor,
        image_index: torch.LongTensor,
    ) -> Grids:
        """One grid per row; where the processor named none, a square one over the whole image."""
        given = given or images.grids or {}
        if given and (missing := [name for name in _GRID_NAMES if name not in given]):
            raise ValueError(f"{', '.join(missing)} must be given together with the other inputs of the grid.")
        if given:
            return Grids(
                sizes=[tuple(given["grid_sizes"][image].tolist()) for image in image_index.tolist()],
                boxes=given["grid_boxes"][image_index.to(given["grid_boxes"].device)].float().cpu(),
                tokens=[
                    cells[cells >= 0] for cells in (given["grid_tokens"][image] for image in image_index.tolist())
                ],
            )
        counts = (input_ids == self.config.image_token_id).sum(dim=1).tolist()
        sides = [round(count**0.5) for count in counts]
        if any(side == 0 or side * side != count for side, count in zip(sides, counts, strict=True)):
            raise ValueError(
                f"The rows hold {counts} image tokens, which form no square grid. Pass grid_sizes, grid_boxes and "
                "grid_tokens as AttendAndSegmentProcessor returns them."
            )
        return Grids(
            sizes=[(side, side) for side in sides],
            boxes=_whole_images(images, image_index),
            tokens=[torch.arange(count, device=input_ids.device) for count in counts],
        )

    # ---- a given answer -----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        grid_sizes: torch.LongTensor | None = None,
        grid_boxes: torch.FloatTensor | None = None,
        grid_tokens: torch.LongTensor | None = None,
        tile_counts: torch.LongTensor | None = None,
        answer_ranges: torch.LongTensor | None = None,
        phrase_finder: PhraseFinder | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        reject_threshold: float | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> AttendAndSegmentOutput:
        r"""
        One pass over prompts that hold their answers: every token of an answer has the map of the position before it,
        which is the step that would have written it.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Ids with image placeholders expanded, padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes, tile_counts:
                See [`ComposedModel.encode_image`].
            grid_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
                Rows and columns of the grid of image tokens; without it a square grid over the whole image.
            grid_boxes (`torch.LongTensor` of shape `(num_images, 4)`, *optional*):
                What part of the image the grid covers, `(x1, y1, x2, y2)` in its pixels; fractions are rounded.
            grid_tokens (`torch.LongTensor` of shape `(num_images, cells)`, *optional*):
                Which of the image's tokens form the grid, row by row; -1 fills shorter ones.
            answer_ranges (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Where each answer is in `input_ids`, from its first id to after its end token. Without it the
                output has no maps.
            phrase_finder (`Callable[[list[int], int], Sequence]`, *optional*):
                Finds phrases in the ids of an answer, whose input row it is told too; each result has `tokens`, the
                positions of its tokens among the ids. Without it maps are returned, but no masks.
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of each row, where rows share images.
            image_cache ([`ImageCache`], *optional*): Images encoded before, instead of the pixel values.
            reject_threshold (`float`, *optional*):
                Reject phrases for whose mask the segmenter's own score is lower.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are set.
            kwargs:
                Fields of the configuration that differ for this call (`heads`, `attention_layers`,
                `subtract_mean`, `remove_corners`, `prompt`, `attention_temperature`, `box_threshold`, `mask_choice`),
                and further inputs of the vision-language model, `labels` included.

        Returns:
            [`AttendAndSegmentOutput`]

        Raises:
            ValueError: If rows, images, grids and answers do not match, or an option means nothing.
        """
        options, kwargs = self._take_options(kwargs)
        grids = _given_grids(grid_sizes, grid_boxes, grid_tokens)
        views = (pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes, tile_counts)
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs | grids, *views)

        def language_pass():
            return self.vlm(
                input_ids=input_ids,
                attention_mask=attention_mask,
                return_dict=True,
                **self._vlm_image_inputs(images, image_index),
                **kwargs,
            )

        drawn = {}
        if answer_ranges is None or input_ids is None or images is None:
            language = language_pass()
        else:
            found = self._grids(grids, images, input_ids, image_index)
            ranges = check_ranges(answer_ranges, input_ids)
            reducer = AttentionReducer(
                self.vlm,
                ImageColumns.find(input_ids, self.config.image_token_id, found.tokens),
                options["heads"],
                options["attention_layers"],
                queries=predicting_positions(ranges).to(input_ids.device),
            )
            with reduce_attentions(reducer):
                language = language_pass()
            maps = [
                cells[: stop - start, : len(found.tokens[row])].reshape(-1, *found.sizes[row])
                for row, (cells, (start, stop)) in enumerate(zip(reducer.take(), ranges, strict=True))
            ]
            answers = [ids[start:stop].tolist() for ids, (start, stop) in zip(input_ids, ranges, strict=True)]
            phrases = _find_phrases(phrase_finder, answers, len(ranges))
            drawn = draw_phrases(self, options, maps, phrases, found, images, image_index, reject_threshold)
        output = AttendAndSegmentOutput(
            loss=language.get("loss"), logits=language.logits, **language_fields(language), **drawn
        )
        return output_or_tuple(output, return_dict, self.config)

    # ---- an answer of its own -----------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, input_ids: torch.LongTensor | None = None, *args, **kwargs):
        """As [`ComposedModel.generate`]: text only; what only maps and masks need is ignored."""
        _, kwargs = self._take_options(kwargs)
        left_aside = ("phrase_finder", "answer_ranges")
        kwargs = {name: value for name, value in kwargs.items() if name not in left_aside}
        return super().generate(input_ids, *args, **kwargs)

    @torch.no_grad()
    def generate_with_masks(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        phrase_finder: PhraseFinder | None = None,
        reject_threshold: float | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> AttendAndSegmentOutput:
        r"""
        Writes the answers, with the KV cache on, keeps one map per token, and draws a mask for every phrase.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Prompts, padded on the left.
            image_index, image_cache: As in `forward`.
            phrase_finder (`Callable`, *optional*): As in `forward`.
            reject_threshold (`float`, *optional*): As in `forward`.
            return_dict (`bool`): `False` returns a tuple of the fields that are set.
            kwargs:
                The images, grids and options as in `forward`, and anything that [`~GenerationMixin.generate`] takes:
                `max_new_tokens`, `num_beams`, `do_sample`, `num_return_sequences`, `streamer`, ...

        Returns:
            [`AttendAndSegmentOutput`] with `sequences`.

        Raises:
            ValueError: For ways of decoding in which a pass is not one token, and as in `forward`.
        """
        options, kwargs = self._take_options(kwargs)
        kwargs.pop("answer_ranges", None)
        grids = _given_grids(*(kwargs.get(name) for name in _GRID_NAMES))
        for name in _UNSUPPORTED:
            if self._setting(name, kwargs) is not None:
                raise ValueError(
                    f"{name} predicts several tokens per pass, so no map belongs to each; leave it unset."
                )
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs)
        if images is None:
            raise ValueError("An image is needed to point at: pass `pixel_values`, or an `image_cache`.")
        found = self._grids(grids, images, input_ids, image_index)
        columns = ImageColumns.find(input_ids, self.config.image_token_id, found.tokens)
        collector = AttentionMapCollector(self.vlm, columns, options["heads"], options["attention_layers"])
        kwargs = self._recorded_generation(kwargs, collector)
        stop_ids = stop_ids_of(self._setting("eos_token_id", kwargs))
        with reduce_attentions(collector), self._encoding_beside(images, image_index, kwargs.get("streamer")):
            generated = self._generate(
                input_ids, attention_mask, image_index, images, keep=image_cache is not None, **kwargs
            )

        sequences, start = generated.sequences, input_ids.shape[1]
        per_input = len(sequences) // len(input_ids)
        source = torch.arange(len(sequences), device=image_index.device) // per_input
        grids = found.of_rows(source.tolist())
        # Without an end token no row is filled up, and a padding token at its end was written.
        pad_id = self._setting("pad_token_id", kwargs) if stop_ids else None
        # An end token has a map too, and takes part in the mean, as in the released code.
        answers = [answer_ids(row[start:].tolist(), stop_ids, pad_id) for row in sequences]
        beam_indices = generated.get("beam_indices")
        maps = []
        for row, answer in enumerate(answers):
            running = torch.full((len(answer),), row) if beam_indices is None else beam_indices[row, : len(answer)]
            maps.append(collector.maps_of(running, start, int(source[row])).reshape(-1, *grids.sizes[row]))
        phrases = _find_phrases(phrase_finder, answers, len(input_ids))
        index = image_index[source]
        drawn = draw_phrases(self, options, maps, phrases, grids, images, index, reject_threshold)
        output = AttendAndSegmentOutput(
            sequences=sequences,
            sequences_scores=generated.get("sequences_scores"),
            cache=find_cache(generated),
            **drawn,
        )
        return output if return_dict else output.to_tuple()

    def _read_prompts(self, *prompts) -> ReadPrompts | None:
        with no_attention_reduced():  # the last token of a prompt, which predicts the first of its answer, comes later
            return super()._read_prompts(*prompts)

    # ---- from maps to masks -------------------------------------------------------------------------------------

    @torch.no_grad()
    def segment_maps(
        self,
        attention_maps: Sequence[torch.FloatTensor],
        groups: Sequence[Sequence[Sequence[int]]],
        image_cache: ImageCache,
        image_index: torch.LongTensor | None = None,
        grid_boxes: torch.FloatTensor | None = None,
        **options,
    ) -> AttendAndSegmentOutput:
        r"""
        Draws from maps that were kept from earlier, without the language model.

        Args:
            attention_maps (`Sequence[torch.FloatTensor]` of shapes `(tokens, grid_rows, grid_columns)`):
                One entry per row, as in the output of `generate_with_masks`.
            groups (`Sequence[Sequence[Sequence[int]]]`): Per row the tokens of each phrase.
            image_cache ([`ImageCache`]): From `encode_image`; holds the segmenter's view.
            image_index (`torch.LongTensor` of shape `(rows,)`, *optional*): The image of each row.
            grid_boxes (`torch.LongTensor` or `torch.FloatTensor` of shape `(rows, 4)`, *optional*):
                What each grid covers; by default what the cache knows, else the whole image.
            options: Fields of the configuration that differ, as in `forward`.

        Returns:
            [`AttendAndSegmentOutput`] without text.
        """
        options, unknown = self._take_options(options)
        if unknown:
            raise ValueError(f"Unknown options {sorted(unknown)}; allowed are {', '.join(_OPTION_NAMES)}.")
        image_index = resolve_image_index(image_index, len(attention_maps), image_cache.num_images, self.device)
        known = (image_cache.grids or {}).get("grid_boxes")
        if grid_boxes is None and known is not None:
            grid_boxes = known[image_index.to(known.device)]
        if grid_boxes is None:
            grid_boxes = _whole_images(image_cache, image_index)
        grids = Grids([tuple(maps.shape[1:]) for maps in attention_maps], torch.as_tensor(grid_boxes).float().cpu())
        phrases = [[TokenGroup(tuple(tokens)) for tokens in row] for row in groups]
        drawn = draw_phrases(self, options, list(attention_maps), phrases, grids, image_cache, image_index)
        return AttendAndSegmentOutput(**drawn)

    def _take_options(self, kwargs: dict) -> tuple[dict, dict]:
        """The fields of the configuration, those given in the call first; and the other keyword arguments."""
        options = {name: getattr(self.config, name) for name in _OPTION_NAMES}
        options["mask_choice"] = self.config.chosen_mask
        given = {name: kwargs[name] for name in _OPTION_NAMES if kwargs.get(name) is not None}
        for name, value in given.items():
            check_pointing_option(name, value)
        return {**options, **given}, {name: value for name, value in kwargs.items() if name not in _OPTION_NAMES}


def _given_grids(grid_sizes, grid_boxes, grid_tokens) -> dict[str, torch.Tensor]:
    values = dict(zip(_GRID_NAMES, (grid_sizes, grid_boxes, grid_tokens), strict=True))
    return {name: value for name, value in values.items() if value is not None}


def _whole_images(images: ImageCache, image_index: torch.LongTensor) -> torch.FloatTensor:
    """The box of the whole image for each row, `(rows, 4)`."""
    sizes = [images.size_of(image) for image in image_index.tolist()]
    if None in sizes:
        raise ValueError("The size of the images is unknown; pass `original_sizes` as the processor returns it.")
    return torch.tensor([[0.0, 0.0, float(width), float(height)] for height, width in sizes])


def _find_phrases(finder: PhraseFinder | None, answers: list[list[int]], num_inputs: int) -> list[list] | None:
    """The phrases of each answer; several answers in a row may belong to one input."""
    if finder is None:
        return None
    per_input = len(answers) // num_inputs
    return [list(finder(answer, row // per_input)) for row, answer in enumerate(answers)]


__all__ = ["AttendAndSegmentForReasoningSegmentation"]
