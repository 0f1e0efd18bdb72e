"""Training on examples held in memory, for the Python API: `fit` for those who have a list and want a model."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.errors import UserError
from zoo.layers.lora import add_lora, merge_lora
from zoo.regress_lm.example import Example
from zoo.training.batches import Row, TextBatch, bucketed, collate
from zoo.training.module import ZooModule
from zoo.training.random_streams import derive, stream

if TYPE_CHECKING:
    from zoo.regress_lm.module import RegressLM


def fine_tune(
    model: "RegressLM",
    examples: Sequence[Example],
    validation_examples: Sequence[Example] | None = None,
    seed: int | None = None,
    *,
    max_epochs: int = 60,
    batch_size: int = 64,
    lr: float = 2e-3,
    warmup_share: float = 0.05,
    min_lr_ratio: float = 0.01,
    weight_decay: float = 0.3,
    patience: int = 20,
    clip: float = 1.0,
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    progress: bool = True,
) -> list[float]:
    """Train `model` on `examples` in mini-batches and leave it with the weights that validated best.

    AdamW, linear warm-up, then cosine; fp16 with a gradient scaler on a GPU.

    Args:
        model: what is trained, in place.
        examples: texts and their numbers.
        validation_examples: decide which weights are best, and when to stop. By default a tenth of the examples, which
            are then not trained on; fewer than 20 examples are all trained on, and validate as well.
        seed: of the order, of the held-out part and of dropout; 0 by default.
        max_epochs: the longest that it can take; the cosine is planned over them.
        batch_size: examples per step.
        lr: peak learning rate.
        warmup_share: this share of all steps is warm-up.
        min_lr_ratio: the cosine ends at this share of `lr`.
        weight_decay: decoupled decay of the matrices.
        patience: stop after this many epochs without a better validation loss.
        clip: the longest gradient (Euclidean norm over all weights).
        lora_rank: train low-rank updates of this rank, merged into the weights at the end; 0 trains every weight.
        lora_alpha: their scale is lora_alpha / lora_rank.
        progress: show a progress bar.

    Returns:
        The validation loss (nats per number token) after each epoch.

    Raises:
        ValueError: no examples, or one that the model cannot read or spell.
    """
    if not examples or (validation_examples is not None and not validation_examples):
        raise UserError(f"there are no {'validation ' if examples else ''}examples to fine-tune on")
    seed = seed or 0
    train = model.rows(examples)
    model.vocabulary.encode([row.targets for row in train])  # says, once, what it clamps or cannot spell
    if validation_examples is not None:
        held_out = model.rows(validation_examples)
    else:
        train, held_out = _split(train, seed)
    order = Shuffled([len(row.tokens) for row in train], batch_size, seed)
    device = model.device
    best = Best()
    model.train()
    steps = max_epochs * len(order)
    run = Run(
        model, seed, lr=lr, warmup_steps=int(warmup_share * steps), min_lr_ratio=min_lr_ratio, weight_decay=weight_decay
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", PossibleUserWarning)  # of loader processes and logging intervals
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # Lightning's own business
        trainer = Trainer(
            accelerator=device.type if device.type != "cuda" else "gpu",
            devices=1,
            precision="16-mixed" if device.type == "cuda" else "32-true",
            max_epochs=max_epochs,
            gradient_clip_val=clip,
            callbacks=[EarlyStopping("val_loss", patience=patience, check_finite=True), best],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
        )
        if lora_rank:
            torch.manual_seed(derive(seed, "lora"))
            add_lora(model.model, lora_rank, lora_alpha)
        try:
            trainer.fit(
                run,
                DataLoader(train, batch_sampler=order, collate_fn=collate),  # type: ignore[arg-type]
                DataLoader(held_out, batch_size=4 * batch_size, collate_fn=collate),  # type: ignore[arg-type]
            )
        finally:  # Ctrl-C too leaves the best weights so far
            if best.weights:
                model.load_state_dict(best.weights)
            if lora_rank:
                merge_lora(model.model)
            model.to(device).eval()
    return best.losses


class Run(ZooModule):
    """A fit of someone else's weights with settings of its own."""

    def __init__(self, model: "RegressLM", seed: int, **settings: Any) -> None:
        super().__init__()
        self.model, self.seed = model, seed
        self.hparams.update(settings)

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        torch.manual_seed(derive(self.seed, "step", self.global_step))

    def on_before_batch_transfer(self, batch: TextBatch, dataloader_idx: int) -> TextBatch:
        return self.model.on_before_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        return self.model.losses(batch).mean()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        losses = self.model.losses(batch)
        self.log("val_loss", losses.mean(), prog_bar=True, batch_size=len(losses))


class Best(Callback):
    """Keeps the weights with the lowest validation loss, and all validation losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, run: Any) -> None:
        loss = trainer.callback_metrics["val_loss"].item()
        if not self.losses or loss < min(self.losses):
            self.weights = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
        self.losses.append(loss)


class Shuffled:
    """Batches of row numbers, texts of like length together, in an order of its own every epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = stream(self.seed, "order", self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.lengths), generator=generator)
        order = bucketed(order, self.lengths, self.batch_size, generator)
        yield from (rows.tolist() for rows in order.split(self.batch_size))


def _split(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """A tenth held out, drawn by the seed; of a handful of rows all on both sides."""
    if len(rows) < 20:
        return rows, rows
    order = torch.randperm(len(rows), generator=stream(seed, "held out")).tolist()
    held_out = order[: len(rows) // 10]
    return [rows[i] for i in order[len(held_out) :]], [rows[i] for i in held_out]
