"""Shows a language model that learns from scratch where to look: from each slot to the patches of what it means.

Answers and masks alone hardly ever start to teach this: as long as attention is spread over all patches, neither says
anything about where it should go (a plateau of hundreds of steps at the sizes of the embedded model). Once some heads
look at the right place, [SEG] against [REJ] and the place of the mask are there to be read.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


# A patch belongs to a target that covers this part of it, or half of what it covers of its fullest patch.
COVERED = 0.3


class AttentionGuidance:
    """
    A loss on the attention from the positions that predict slots.

    What counts is the attention to the patches of a slot's mask, and where the mask is empty (`[REJ]`) that to the
    first token, which thereby means "nowhere". The loss is the mean negative logarithm over slots and heads.

    Args:
        model (`nn.Module`): A model of this package with `attn_implementation="eager"`; others do not give their
            attention away.
        layer (`int`): The decoder layer that is guided. One for what a slot names, and an earlier one for what has to
            be found before (the box in "the cup left of the box"), make two steps of a comparison.
        heads (`int`): How many of its heads; the others find their own use.
        weight (`float`): Weight of the loss.
        landmarks (`bool`): Whether to look at `landmark_labels`, what has to be found before, instead of the masks.

    Raises:
        ValueError: If the model has no such layer or another implementation of attention.
    """

    def __init__(self, model: nn.Module, layer: int, heads: int, weight: float = 1.0, landmarks: bool = False):
        decoder = model.vlm.base_model.language_model
        if decoder.config._attn_implementation != "eager":
            raise ValueError(
                f"Attention guidance needs attn_implementation: eager, not {decoder.config._attn_implementation!r}."
            )
        if not 0 <= layer < len(decoder.layers):
            raise ValueError(f"There is no layer {layer}; the language model has {len(decoder.layers)}.")
        self.heads, self.weight, self.landmarks = heads, weight, landmarks
        self.image_token_id = model.config.vlm_config.image_token_id
        self._attention: torch.Tensor | None = None
        decoder.layers[layer].self_attn.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args, output: tuple) -> None:
        self._attention = output[1]

    def __call__(self, inputs: dict, outputs, labels: dict) -> torch.FloatTensor:
        """As an auxiliary loss of the Trainer."""
        masks = labels["landmark_labels"] if self.landmarks else inputs["mask_labels"]
        return self.weight * self.loss(inputs["input_ids"], outputs["slot_positions"], masks)

    def loss(
        self,
        input_ids: torch.LongTensor,
        slot_positions: Sequence[torch.LongTensor],
        mask_labels: Sequence[torch.FloatTensor],
    ) -> torch.FloatTensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(rows, sequence_length)`): Of the forward pass just made, padded
                on the right.
            slot_positions (`Sequence[torch.LongTensor]`): Per row the positions of its slots.
            mask_labels (`Sequence[torch.FloatTensor]`): Per row `(slots, height, width)`, in [0, 1], where to look;
                images must be square, so that they lie on the grid of patches.
        """
        attention, self._attention = self._attention, None
        device = input_ids.device
        counts = torch.tensor([len(positions) for positions in slot_positions], device=device)
        rows = torch.repeat_interleave(torch.arange(len(input_ids), device=device), counts)
        if not len(rows):
            return attention.sum() * 0.0
        # Predicting positions; their attention to every token, (slots, heads, sequence_length).
        attention = attention[rows, : self.heads, torch.cat(list(slot_positions)) - 1]
        is_patch = input_ids == self.image_token_id
        side = int(is_patch[0].sum() ** 0.5)
        patches = is_patch.float().argmax(-1)[rows, None] + torch.arange(side * side, device=device)
        to_patches = attention.gather(-1, patches[:, None].expand(-1, self.heads, -1))
        covered = F.adaptive_avg_pool2d(torch.cat(list(mask_labels)), side).flatten(1)
        fullest = covered.amax(-1, keepdim=True)
        is_target = covered > (fullest / 2).clamp(max=COVERED)
        to_target = (to_patches * is_target[:, None]).sum(-1)
        right = torch.where(fullest == 0, attention[..., 0], to_target)
        return -(right + 1e-6).log().mean()


__all__ = ["AttentionGuidance"]
