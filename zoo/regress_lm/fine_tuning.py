"""Fine-tuning on a list of examples: the Python API's counterpart of `zoo fit`, with the same module and Trainer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from zoo.callbacks.best_weights import BestWeights
from zoo.callbacks.early_stopping import EarlyStopping
from zoo.callbacks.non_finite import NonFinite
from zoo.callbacks.progress import Progress
from zoo.console.messages import did_you_mean, quiet_lightning
from zoo.errors import UserError, check_counts, check_number, check_positive
from zoo.layers.lora import add_lora, merge_lora
from zoo.optim import OptimizerConfig
from zoo.private_apis.lightning_precision import mixed_precision_of
from zoo.regress_lm.module import RegressLMModule
from zoo.training.batches import BucketBatchSampler, Row, TextBatch, collate
from zoo.training.random_streams import derive, stream


@dataclass
class FineTuning:
    """Settings of fine-tuning.

    Args:
        max_epochs: largest number of epochs, at least 1; the cosine ends there.
        batch_size: rows per step, at least 1.
        lr: peak learning rate, at least 0.
        warmup_share: share of all steps that is warm-up, from 0 to 1.
        min_lr_ratio: the cosine ends at this share of `lr`, from 0 to 1.
        weight_decay: decoupled weight decay of matrices, at least 0.
        patience: stop after this many epochs without a lower validation loss; at least 1.
        clip: largest Euclidean norm of the gradient of all weights, positive; longer gradients are scaled down.
        lora_rank: train low-rank updates of this rank, merged into the weights at the end; 0 trains all weights.
        lora_alpha: the update is multiplied by lora_alpha / lora_rank.
        progress: show a progress line.

    Raises:
        UserError: a setting is out of range.
    """

    max_epochs: int = 60
    batch_size: int = 64
    lr: float = 2e-3
    warmup_share: float = 0.05
    min_lr_ratio: float = 0.01
    weight_decay: float = 0.3
    patience: int = 20
    clip: float = 1.0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_counts(max_epochs=self.max_epochs, batch_size=self.batch_size, patience=self.patience)
        check_counts(0, lora_rank=self.lora_rank)
        check_number("warmup_share", self.warmup_share, "from 0 to 1", lambda share: 0 <= share <= 1)
        check_positive("clip", self.clip)
        check_number("lora_alpha", self.lora_alpha, "finite", math.isfinite)
        self.optimizer_config(0).check()

    def optimizer_config(self, steps: int) -> OptimizerConfig:
        """AdamW with warm-up and cosine over so many steps, even if training stops earlier."""
        return OptimizerConfig(
            lr=self.lr,
            warmup_steps=int(self.warmup_share * steps),
            min_lr_ratio=self.min_lr_ratio,
            weight_decay=self.weight_decay,
        )


def new_settings(options: Mapping[str, Any]) -> FineTuning:
    """The settings with the given options; raises UserError if one does not exist or is out of range."""
    known = [field.name for field in fields(FineTuning)]
    for name in options:
        if name not in known:
            similar = {"epochs": "max_epochs", "steps": "max_epochs"}.get(name)
            remedy = f"; did you mean {similar}?" if similar else did_you_mean(name, known, ": drop it")
            raise UserError(f"fine_tune has no argument {name!r}{remedy}")
    return FineTuning(**options)


def fine_tune(
    model: RegressLMModule, rows: Sequence[Row], validation_rows: Sequence[Row] | None, seed: int, settings: FineTuning
) -> list[float]:
    """Train `model` on `rows` in mini-batches, and leave it with the weights of the lowest validation loss.

    AdamW with linear warm-up and cosine decay; on a GPU in bf16, or in fp16 with a gradient scaler before Ampere.

    Args:
        model: trained in place.
        rows: tokenized texts and their numbers, at least one.
        validation_rows: determine the best weights and when to stop. None for a tenth of the rows, which is then not
            trained on; fewer than 20 rows are all used for both.
        seed: seed of the order, of the held-out part and of dropout.
        settings: settings of the training.

    Returns:
        The validation loss (nats per number token) after each epoch.

    Raises:
        UserError: training diverges; the model then has the best weights so far.
    """
    s = settings
    # Data: held-out rows for early stopping, and batches of texts of similar length.
    train, held_out = _split(rows, seed) if validation_rows is None else (rows, validation_rows)
    batch_size = min(s.batch_size, len(rows))
    batches = BucketBatchSampler([len(row.tokens) for row in train], batch_size, seed)
    optimizer_config = s.optimizer_config(s.max_epochs * len(batches))
    device = model.device
    best = BestWeights("val_loss")
    # `stored_states` also ends the storing of an encoder's states where training is interrupted.
    with quiet_lightning(), torch.random.fork_rng(), _settings(model, optimizer_config, seed), model.stored_states():
        # Train until the validation loss stops falling; `best` remembers the weights with the lowest one.
        callbacks = [NonFinite(), EarlyStopping("val_loss", patience=s.patience), best]
        trainer = _new_trainer(device, s, callbacks)
        # Low-rank updates, whose initial values depend on the seed only.
        model.train()
        if s.lora_rank:
            torch.manual_seed(derive(seed, "lora"))
            add_lora(model.model, s.lora_rank, s.lora_alpha)
        try:
            trainer.fit(
                model,
                DataLoader(train, batch_sampler=batches, collate_fn=collate),  # type: ignore[arg-type]
                DataLoader(held_out, batch_size=4 * batch_size, collate_fn=collate),  # type: ignore[arg-type]
            )
        finally:
            # Also after Ctrl-C the model has the best weights so far.
            best.restore(model)
            if s.lora_rank:
                merge_lora(model.model)
            model.to(device).eval()
    # Calibrate the best weights, unless the model was trained on the validation rows.
    with model.stored_states():
        model.calibrate([] if held_out is train else _batches(model, held_out, 4 * batch_size))
    return best.values


def _new_trainer(device: torch.device, settings: FineTuning, callbacks: list[Callback]) -> Trainer:
    """A Trainer on the model's device that writes no files; on a GPU it trains in mixed precision."""
    return Trainer(
        accelerator=device.type if device.type != "cuda" else "gpu",
        devices=1,
        precision=mixed_precision_of(device) if device.type == "cuda" else "32-true",
        max_epochs=settings.max_epochs,
        gradient_clip_val=settings.clip,
        callbacks=[*callbacks, *([Progress()] if settings.progress else [])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=settings.progress,
        num_sanity_val_steps=0,
    )


def check_examples(
    model: RegressLMModule,
    examples: Sequence[Any],
    validation_examples: Sequence[Any] | None,
    seed: int | None,
    settings: FineTuning,
) -> None:
    """Raises UserError if there are no examples, the seed is no integer, or the settings do not fit the model."""
    if settings.lora_rank and model.pretrained_encoder is not None:
        raise UserError("lora_rank would adapt the pretrained encoder too: make the model with encoder_mode='lora'")
    if not examples or (validation_examples is not None and not validation_examples):
        raise UserError(f"there are no {'validation ' if examples else ''}examples to fine-tune on")
    if seed is not None:
        check_number("seed", seed, "or None", lambda seed: True, whole=True)


@contextmanager
def _settings(model: RegressLMModule, optimizer_config: OptimizerConfig, seed: int) -> Iterator[None]:
    """Give the module other training settings for one fit: optimizer, seed, and validation by the loss only."""
    before = model.optimizer_config, model.dropout_seed, model.val_samples, model.calibrates_in_fit
    model.optimizer_config, model.dropout_seed, model.val_samples, model.calibrates_in_fit = (
        optimizer_config, seed, 0, False,
    )  # fmt: skip
    try:
        yield
    finally:
        model.optimizer_config, model.dropout_seed, model.val_samples, model.calibrates_in_fit = before
        model.trainer = None  # otherwise copies and pickles of the model would contain the trainer and its data


def _batches(model: RegressLMModule, rows: Sequence[Row], batch_size: int) -> Iterator[TextBatch]:
    """Batches of the rows on the model's device."""
    for i in range(0, len(rows), batch_size):
        batch = model.with_number_tokens(collate(rows[i : i + batch_size]))
        yield model.transfer_batch_to_device(batch, model.device, 0)


def _split(rows: Sequence[Row], seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Training and held-out rows: a random tenth is held out; fewer than 20 rows are all used for both."""
    if len(rows) < 20:
        return rows, rows
    # Hold out the first tenth of a random order.
    order = torch.randperm(len(rows), device="cpu", generator=stream(seed, "held out")).tolist()
    held_out = order[: len(rows) // 10]
    return [rows[i] for i in order[len(held_out) :]], [rows[i] for i in held_out]
