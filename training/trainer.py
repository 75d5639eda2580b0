"""transformers' Trainer for reasoning segmentation: every part of the loss in the logs, complete repos on disk."""

from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import Trainer


class ReasoningSegmentationTrainer(Trainer):
    """
    Trainer whose logs hold each part of the loss, and whose checkpoints are repos that load and run.

    Saving code, configuration and weights is the model's own, processor and chat template come from
    `processing_class`; so every `checkpoint-N` can be evaluated, published or used in a pipeline as it is.

    Args:
        decision_loss_weight (`float`): Weight of an additional cross entropy between `[SEG]` and `[REJ]` at every
            slot. 0, the originals' value, leaves the decision to the language loss.
        optimizer_factory (`Callable`, *optional*): Makes the optimizer from the model's named parameters; without it
            the Trainer's own choice (`optim`) is used.
        args, kwargs: As for [`~transformers.Trainer`]. `remove_unused_columns=False` is required.
    """

    def __init__(
        self,
        *args,
        decision_loss_weight: float = 0.0,
        optimizer_factory: Callable | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if self.args.remove_unused_columns:
            raise ValueError(
                "The collator needs pictures and conversations, which no forward argument is named after; set "
                "remove_unused_columns=False in the training arguments."
            )
        self.decision_loss_weight = decision_loss_weight
        self.optimizer_factory = optimizer_factory
        self._loss_parts: dict[str, list[torch.Tensor]] = defaultdict(list)

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.optimizer_factory is not None:
            self.optimizer = self.optimizer_factory((model or self.model).named_parameters())
            return self.optimizer
        return super().create_optimizer(model) if model is not None else super().create_optimizer()

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss, parts = outputs["loss"], dict(outputs["losses"])
        if self.decision_loss_weight:
            parts["decision_loss"] = self.decision_loss_weight * self._decision_loss(outputs, inputs)
            loss = loss + parts["decision_loss"]
        if model.training:
            for name, value in parts.items():
                self._loss_parts[name].append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def _decision_loss(self, outputs, inputs) -> torch.Tensor:
        """Cross entropy between the two slot tokens where each slot is predicted."""
        config = self.accelerator.unwrap_model(self.model).config
        pair = [config.seg_token_id, config.rej_token_id]
        logits, targets = [outputs["logits"].new_zeros(0, 2)], []
        for row, positions in enumerate(outputs["slot_positions"]):
            logits.append(outputs["logits"][row, positions - 1][:, pair])
            targets.append((inputs["input_ids"][row, positions] == config.rej_token_id).long())
        logits, targets = torch.cat(logits), torch.cat(targets)
        return F.cross_entropy(logits, targets) if len(targets) else logits.sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every loss part since the last log, over all processes."""
        if "loss" in logs and self._loss_parts:
            for name, values in sorted(self._loss_parts.items()):
                logs[name] = round(float(self.accelerator.reduce(torch.stack(values).mean(), "mean")), 4)
            self._loss_parts.clear()
        super().log(logs, start_time)


__all__ = ["ReasoningSegmentationTrainer"]
