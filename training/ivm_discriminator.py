"""Stage I of IVM's training: a vision-language model learns to tell masks that people drew from machines' masks.

After figure 6 (stage I) of arXiv 2405.19783: a LoRA-tuned LLaVA, the generator's own base with adapters of its own,
sees the image through a mask beside the instruction and is trained with binary cross entropy, people's masks being
the positive class. As a formula, which is our reading and not a quotation:

    min_D  E_people[-log D(image, instruction, mask)] + E_machines[-log(1 - D(image, instruction, mask))]

The original's repository holds the network (`LLaVAEncoderDiscriminator`: the hidden part of the image painted white,
the question "Can you follow instruction above based on the given image?", the last token's last hidden state, a GELU
MLP of a quarter of the width) but neither its training nor its weights. Left open there, and chosen here:

- the shares of both classes. People drew few of a million masks; both expectations count the same here, whatever the
  number of examples, so that 0.5 means "as likely from either".
- number of steps and learning rate; they are the recipe's.
- soft masks. The original multiplies whole numbers, so that its masks are 0 or 1; values between mix image and
  white.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from ..atomic_files import written_whole
from ..data.example import MaskingExample
from ..modeling.modeling_ivm import PromptProjector
from ..processing.image_loading import load_rgb_image
from ..processing.mask_reading import soft_mask
from .trained_parameters import trained_state_dict


# The original's llavaTextPreprocess(role="discriminator"), without what the processor writes around every instruction.
DISCRIMINATOR_QUESTION = "{instruction} \n Can you follow instruction above based on the given image?"
WHITE = (255, 255, 255)


class IvmDiscriminator(nn.Module):
    """
    Args:
        vlm (`nn.Module`): A LLaVA of transformers, used as it is, with or without adapters.
        human_share (`float`): Share of the training examples that people drew, between 0 and 1; its inverse balances
            the loss.

    Raises:
        ValueError: If `human_share` is not between 0 and 1, so that there is nothing to tell apart.
    """

    def __init__(self, vlm: nn.Module, human_share: float = 0.5):
        super().__init__()
        if not 0.0 < human_share < 1.0:
            raise ValueError(
                f"human_share is {human_share}; a discriminator needs masks of people and of machines, so it must "
                "lie between 0 and 1."
            )
        width = vlm.config.get_text_config().hidden_size
        self.vlm = vlm
        self.head = PromptProjector(width, max(1, width // 4), 1)
        self.human_share = human_share

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.FloatTensor,
        labels: torch.FloatTensor | None = None,
    ) -> dict[str, Any]:
        """
        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Prompts, padded on
                either side.
            pixel_values (`torch.FloatTensor`): The masked images, one per row.
            labels (`torch.FloatTensor` of shape `(batch_size,)`, *optional*): 1 for masks of people, 0 of machines.

        Returns:
            `dict`: `logits` `(batch_size,)`, whose sigmoid is the probability of a person's mask; with `labels` also
            `loss` and `losses`.
        """
        states = self.vlm.base_model(
            input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, return_dict=True
        ).last_hidden_state
        last = attention_mask.shape[1] - 1 - attention_mask.long().flip(-1).argmax(-1)
        states = states[torch.arange(len(states), device=states.device), last]
        logits = self.head(states.to(self.head.linear_1.weight.dtype))[:, 0].float()
        if labels is None:
            return {"logits": logits}
        labels = labels.to(logits)
        balance = 0.5 * torch.where(labels > 0.5, 1 / self.human_share, 1 / (1 - self.human_share))
        loss = (balance * F.binary_cross_entropy_with_logits(logits, labels, reduction="none")).mean()
        return {"loss": loss, "losses": {"discriminator_loss": loss}, "logits": logits}

    def activation_checkpointing_enable(self, **kwargs) -> None:
        """As of a model of transformers, for the Trainer."""
        self.vlm.activation_checkpointing_enable(**kwargs)

    @torch.inference_mode()
    def scores(self, batch: dict[str, Any]) -> torch.FloatTensor:
        """D of each row `(batch_size,)`, in [0, 1]; `labels` in the batch are not looked at."""
        device = self.head.linear_1.weight.device
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.vlm.dtype)
        return self(**inputs)["logits"].sigmoid().cpu()


def apply_mask(image: Image.Image, mask: np.ndarray, fill: tuple[int, int, int] = WHITE) -> Image.Image:
    """
    The image where the mask is 1 and a colour where it is 0; values between mix both.

    Args:
        image (`PIL.Image.Image`): RGB.
        mask (`np.ndarray`): `(height, width)` of the image, in [0, 1].
        fill (`tuple[int, int, int]`): RGB.

    Raises:
        ValueError: If image and mask differ in size, or the mask has other values.
    """
    mask = np.asarray(mask)
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"A mask of shape {mask.shape} was given for an image of {image.width} x {image.height} pixels; it must "
            f"be {(image.height, image.width)}, (height, width)."
        )
    kept = soft_mask(mask)[..., None]
    mixed = np.asarray(image, dtype=np.float32) * kept + np.asarray(fill, dtype=np.float32) * (1 - kept)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


class DiscriminatorCollator:
    """
    Batches for [`IvmDiscriminator`]: the masked images, the question whether they suffice, and who drew the masks.

    Args:
        processor ([`IvmProcessor`]): Writes the prompts and the vision-language model's view.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, examples: Sequence[MaskingExample]) -> dict[str, Any]:
        batch = self.processor(
            images=[apply_mask(load_rgb_image(example.image), example.mask) for example in examples],
            text=[DISCRIMINATOR_QUESTION.format(instruction=example.instruction) for example in examples],
            return_tensors="pt",
        )
        return {
            **{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")},
            "labels": torch.tensor([float(example.human) for example in examples]),
        }


def save_discriminator(discriminator: IvmDiscriminator, path: Path) -> None:
    """Writes what learned, adapters or the whole model and the head, as one safetensors file."""
    with written_whole(path) as draft:
        save_file(trained_state_dict(discriminator, discriminator.state_dict()), draft, metadata={"format": "pt"})


def load_discriminator(discriminator: IvmDiscriminator, path: Path) -> None:
    """
    Reads what `save_discriminator` wrote into a discriminator with the same adapters.

    Raises:
        ValueError: If the file is of a discriminator with other trained parts.
    """
    state = load_file(path)
    expected = set(trained_state_dict(discriminator, discriminator.state_dict()))
    if expected != set(state):
        differing = sorted(expected ^ set(state))
        raise ValueError(
            f"{path} is of a discriminator that trains other parts ({len(differing)} differ, first {differing[0]!r}); "
            "use the recipe that wrote it or another folder."
        )
    discriminator.load_state_dict(state, strict=False)


def human_share(flags: Sequence[bool]) -> float:
    """
    Share of the examples that people drew.

    Raises:
        ValueError: If all or none are.
    """
    share = sum(flags) / len(flags)
    if not 0.0 < share < 1.0:
        kind = "people" if share else "machines"
        raise ValueError(
            f"All {len(flags)} masks are from {kind}; a discriminator needs some of both. Mark the sources that "
            "people drew with `human: true`."
        )
    return share


__all__ = [
    "DiscriminatorCollator",
    "IvmDiscriminator",
    "apply_mask",
    "human_share",
    "load_discriminator",
    "save_discriminator",
]
