"""transformers' Trainer for reasoning segmentation: every part of the loss in the logs, complete repos on disk."""

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .checkpoints import CHECKPOINT_DRAFT, put_in_place
from .length_groups import ModalityLengthSampler
from .optimizers import split_learning_rates
from .recipe import Recipe, RecipeError
from .trained_parameters import has_lora, merged_state_dict, trained_state_dict, without_copies
from .validation import Validation


logger = logging.getLogger(__name__)

TRAINED_PARTS_FILE = "trained_parts.safetensors"
# DeepSpeed puts them beside its states, to make weights of them; here they are there, and foreign code is refused.
_DEEPSPEED_SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")


def training_arguments(recipe: Recipe, out: Path, **overrides) -> TrainingArguments:
    """The Trainer's arguments for a stage of a recipe that is written to `out`."""
    return TrainingArguments(
        output_dir=str(out),
        **{
            "remove_unused_columns": False,
            "label_names": ["labels", "mask_labels"],
            "report_to": [],
            "seed": recipe.seed,
            **recipe.arguments,
            **overrides,
        },
    )


@contextmanager
def _own_class(model: torch.nn.Module) -> Iterator[None]:
    """Within, the model has the class whose code is saved with it; FSDP 2 has given it one of torch's."""
    given = type(model)
    if issubclass(given, FSDPModule):
        model.__class__ = next(base for base in given.__mro__ if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = given


class EpochCallback(TrainerCallback):
    """Tells the data set which epoch begins; accelerate tells the sampler alone where there is one."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_epoch(int(state.epoch))


class ReasoningSegmentationTrainer(Trainer):
    """
    Trainer whose logs hold each part of the loss, and whose checkpoints are repos that load and run.

    Every `checkpoint-N` holds the whole model with adapters merged, its code, processor and chat template, so that it
    can be evaluated, published or used in a pipeline as it is; a killed run leaves it whole or not at all. Runs with
    adapters add `trained_parts.safetensors`, from which a resumed run takes the unmerged state.

    Args:
        decision_loss_weight (`float`): Weight of an additional cross entropy between `[SEG]` and `[REJ]` at every
            slot. 0, the originals' value, leaves the decision to the language loss.
        auxiliary_losses (`dict[str, Callable]`, *optional*): Further losses by the name they have in the logs. Each
            takes the batch, the model's output and `auxiliary_labels`, what the collator puts under that name (which
            the model does not get), and gives a loss with its weight in it.
        optimizer_factory (`Callable`, *optional*): Makes the optimizer from the model's named parameters; without it
            the Trainer's own choice (`optim`) is used.
        learning_rates (`dict[str, float]`, *optional*): Learning rates of parameters whose names match a pattern, in
            the Trainer's own optimizer; the first pattern that matches counts.
        signed_lengths (`Sequence[int]`, *optional*): Words of each row of the training data, negative without an
            image; rows then come in the order of [`ModalityLengthSampler`].
        validation ([`Validation`], *optional*): Measures the model where the Trainer evaluates.
        args, kwargs: As for [`~transformers.Trainer`]. `remove_unused_columns=False` is required.
    """

    def __init__(
        self,
        *args,
        decision_loss_weight: float = 0.0,
        auxiliary_losses: dict[str, Callable[[dict, Any, dict], torch.Tensor]] | None = None,
        optimizer_factory: Callable | None = None,
        learning_rates: dict[str, float] | None = None,
        signed_lengths: Sequence[int] | None = None,
        validation: Validation | None = None,
        **kwargs,
    ):
        if validation is not None:
            kwargs["eval_dataset"] = []  # the benchmark reads its own; the Trainer wants to see some
        super().__init__(*args, **kwargs)
        self.validation = validation
        self._check_sharding()
        if self.args.remove_unused_columns:
            raise ValueError(
                "The collator needs images and conversations, which no forward argument is named after; set "
                "remove_unused_columns=False in the training arguments."
            )
        # Every loss here is the mean of its batch, so accumulated batches must be averaged.
        self.loss_is_scaled_for_ga = False
        self.decision_loss_weight = decision_loss_weight
        self.auxiliary_losses = auxiliary_losses or {}
        self.optimizer_factory = optimizer_factory
        self.learning_rates = learning_rates or {}
        self.signed_lengths = signed_lengths
        self._loss_parts: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._writes_draft = False
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(EpochCallback(self.train_dataset))

    def _check_sharding(self) -> None:
        """
        Raises:
            RecipeError: If parameters are sharded in a way from which no complete repository can be written, or in
                which the model cannot be measured.
        """
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and (plugin.fsdp_version != 2 or "FULL" not in str(plugin.state_dict_type)):
            raise RecipeError(
                "Checkpoints are complete repositories, which FSDP gives with fsdp_version: 2 and "
                "fsdp_state_dict_type: FULL_STATE_DICT; see training/accelerate/fsdp.yaml."
            )
        if plugin is not None:
            # What is sharded by itself is gathered when its own `forward` is called, which a segmenter's never is;
            # and accelerate wants every class that is named to be there.
            present = {type(module).__name__ for module in self.model.modules()}
            present -= {type(getattr(self.model, "segmenter", None)).__name__}
            self.model._no_split_modules = sorted(present & set(self.model._no_split_modules or ()))
        stage = self.accelerator.state.deepspeed_plugin.zero_stage if self.is_deepspeed_enabled else 0
        if self.validation is not None and (plugin is not None or stage == 3):
            raise RecipeError(
                "`validation` needs the whole model in every process, and its parameters are sharded. Train with "
                "several GPUs or ZeRO stage 2, or leave it out and evaluate the checkpoints, which are complete "
                "repositories."
            )

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.optimizer_factory is not None:
            self.optimizer = self.optimizer_factory((model or self.model).named_parameters())
            return self.optimizer
        optimizer = super().create_optimizer(model)
        if self.learning_rates:
            optimizer.param_groups = split_learning_rates(
                optimizer.param_groups, (model or self.model).named_parameters(), self.learning_rates
            )
        return optimizer

    def _get_train_sampler(self, train_dataset=None):
        if self.signed_lengths is None:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        return ModalityLengthSampler(
            self.signed_lengths,
            args.train_batch_size,
            args.world_size * args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    # ---- losses -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        inputs = dict(inputs)
        auxiliary_labels = inputs.pop("auxiliary_labels", {})
        outputs = model(**inputs)
        # A model without masks has the language loss alone.
        loss, losses = outputs["loss"], dict(outputs.get("losses") or {})
        if self.decision_loss_weight:
            losses["decision_loss"] = self.decision_loss_weight * self._decision_loss(outputs, inputs)
            loss = loss + losses["decision_loss"]
        for name, auxiliary_loss in self.auxiliary_losses.items():
            losses[name] = auxiliary_loss(inputs, outputs, auxiliary_labels)
            loss = loss + losses[name]
        if self.is_fsdp_enabled and outputs.get("mask_scores") is not None:
            # FSDP resumes only where everything that learns has a gradient, and no loss here is on the scores.
            loss = loss + 0.0 * sum(scores.sum() for scores in outputs["mask_scores"])
        if model.training:
            for name, value in losses.items():
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

    # ---- validation ---------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        if self.validation is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        model = self.accelerator.unwrap_model(self.model)
        try:
            with self.accelerator.autocast():
                numbers = self.validation.measure(model, self.processing_class)
        finally:
            model.train()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_best_model(self) -> None:
        best = self._best_checkpoint(Path(self._get_output_dir(None)))
        logger.warning(
            "The finished repository has the weights of %s: %s was %.4f.",
            best.name,
            self.args.metric_for_best_model,
            self.state.best_metric,
        )
        self._load_from_checkpoint(str(best), self.model)

    def _best_checkpoint(self, run_dir: Path) -> Path:
        # by its number: the folder of a run that resumes may have another name than before
        return run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        """As the Trainer's, but aside: a checkpoint gets its name when every process has written its part of it."""
        run_dir = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        drafts, target = run_dir / CHECKPOINT_DRAFT, run_dir / name
        if self.args.should_save:
            shutil.rmtree(drafts, ignore_errors=True)  # of a run that was stopped
        self.accelerator.wait_for_everyone()
        self._writes_draft = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_draft = False
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._best_checkpoint(run_dir))
        if self.args.should_save:
            for script in _DEEPSPEED_SCRIPTS:
                (drafts / name / script).unlink(missing_ok=True)
            self.state.save_to_json(str(drafts / name / TRAINER_STATE_NAME))
            put_in_place(drafts / name, target)
            drafts.rmdir()
            rotate_checkpoints(
                str(run_dir), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _get_output_dir(self, trial) -> str:
        run_dir = super()._get_output_dir(trial)
        return str(Path(run_dir) / CHECKPOINT_DRAFT) if self._writes_draft else run_dir

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writes_draft:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        if not self.args.should_save:
            return  # of sharded parameters the first process alone has been given all
        output_dir = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        state_dict = model.state_dict() if state_dict is None else without_copies(model, state_dict)
        weights = merged_state_dict(model, state_dict) if has_lora(model) else state_dict
        with _own_class(model):
            # Parameter names rather than a family's older spelling: a resumed run looks them up.
            model.save_pretrained(output_dir, state_dict=weights, save_original_format=False)
        if has_lora(model):
            save_file(trained_state_dict(model, state_dict), output_dir / TRAINED_PARTS_FILE)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        model = self.accelerator.unwrap_model(model or self.model)
        trained_parts = Path(resume_from_checkpoint) / TRAINED_PARTS_FILE
        if self.is_fsdp_enabled or not has_lora(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif not trained_parts.is_file():
            raise FileNotFoundError(
                f"{resume_from_checkpoint} has no {TRAINED_PARTS_FILE}, so the adapters it was trained with are lost "
                "in its merged weights; start a new run from it instead of resuming."
            )
        else:
            unexpected = model.load_state_dict(load_file(trained_parts), strict=False).unexpected_keys
            if unexpected:
                raise ValueError(
                    f"{trained_parts} holds {unexpected[:3]}, which this run does not train; resume with the recipe "
                    "that wrote it."
                )


__all__ = ["TRAINED_PARTS_FILE", "ReasoningSegmentationTrainer", "training_arguments"]
