"""The ICR transformer in Lightning: its training, its distances to the exact estimators, its answers to prompts."""

import math
import warnings
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from zoo.errors import UserError
from zoo.icr.error_metrics import ByPlace, ErrorsByPlace, by_place, curves, means
from zoo.icr.evaluation import KINDS, MEASURES
from zoo.icr.figures import errors_by_place
from zoo.icr.model import ICRegConfig, Network
from zoo.icr.predict import predict_from_prompt, ridge_from_prompt
from zoo.optim import AdamW, triangle
from zoo.training.module import ZooModule
from zoo.training.random_streams import global_seed, stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ICRTransformer(ZooModule):
    """A transformer that learns linear regression from the examples in its context.

    A Lightning batch is a block of steps (see `LinearRegressionTasks`), each its own update of the weights. Logged are
    `train_loss`, and for `val` and `test` and the prompts `pretrain` (tasks of the pool) and `true` (new tasks), as
    means over all places: `<split>_<kind>_mse`, `_noise_free` (sigma2 less in expectation), and the distances
    `_to_ridge` and `_to_dmmse`; all are squares in y's unit, to be divided by D for the paper's.
    `val_loss` is `val_pretrain_mse`. TensorBoard has them by place, too.

    Args:
        config: in Python, an ICRegConfig in place of its fields as keywords.
        lr: peak learning rate.
        warmup_steps: the rate rises for so many steps, then falls to 0 at max_steps; None: it is constant.
        grad_clip: gradients are cut to this norm; None: they are not.
        beta1, beta2: Adam's decay rates.
        weight_decay: decoupled decay of the weights.
        compile: compile the network; on a GPU its passes are captured as CUDA graphs.
        **architecture: the fields of ICRegConfig; those of the task follow the data.
    """

    item = "prompts"  # what Throughput counts
    automatic_optimization = False

    def __init__(
        self,
        config: ICRegConfig | None = None,
        lr: float = 1e-3,
        warmup_steps: int | None = None,
        grad_clip: float | None = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        compile: bool = False,
        **architecture: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["config"])
        if config is None:
            config = ICRegConfig(**architecture)
        elif architecture:
            raise UserError(f"give a config or {', '.join(architecture)}, not both")
        self.hparams.update(asdict(config))
        self.config = config
        self.model = self._network()
        self.model.initialize(stream(global_seed(), "weights"))
        self.errors = self._metrics()
        self.split, self.reached = "", ByPlace()  # of the last evaluation

    def _network(self) -> Network:
        return Network(self.config)

    def _metrics(self) -> nn.ModuleDict:
        shape = (*self.model.positions.shape[:-2], self.config.K)  # members first, where there are any
        names = [f"{split}_{kind}" for split in ("val", "test") for kind in KINDS]
        return nn.ModuleDict({name: ErrorsByPlace(*shape) for name in names})

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device.type
        if device == "mps":
            raise UserError("the exact estimators need fp64, which MPS has not: add --trainer.accelerator cpu")
        if device == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32
        if self.hparams["compile"]:
            self.model.compile(mode="reduce-overhead" if device == "cuda" else None)
        if not hasattr(self.data, "task"):
            raise UserError(f"ICRTransformer learns from LinearRegressionTasks, not from {type(self.data).__name__}")
        task = vars(self.data.task)
        for name in ("D", "K") if stage != "predict" else ():
            if task[name] != (own := getattr(self.config, name)):
                raise UserError(f"the data has {name} {task[name]}, but the model {own}: make them equal")
        if stage == "fit":  # what it is trained on is what its checkpoints say
            self.config = replace(self.config, **task)
            self.hparams.update(task)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, k, D), y (B, k), k at most K -> (B, k): every y predicted from the pairs before it."""
        return self.model(x, y)

    # ---- training

    def configure_optimizers(self) -> Any:
        h: Any = self.hparams
        betas = (h.beta1, h.beta2)
        optimizer = AdamW(self.model.parameters(), lr=h.lr, betas=betas, eps=1e-8, weight_decay=h.weight_decay)
        total, warmup = self.trainer.max_steps, h.warmup_steps
        if warmup is not None and total < 0:
            raise UserError("warmup_steps needs an end at which the rate is 0: give --trainer.max_steps")
        schedule = LambdaLR(optimizer, lambda step: 1.0 if warmup is None else triangle(step, warmup, total))
        # Where fp16's scaler skips the very first step, torch would warn of the order of the two.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, steps: Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        losses = []
        for step in steps.tolist():
            x, y, _ = self.data.draw(step)

            def descend(x: Tensor = x, y: Tensor = y) -> None:
                optimizer.zero_grad()
                loss = (self(x, y) - y).square().mean((-2, -1))  # () or, with members, (S,)
                self.manual_backward(loss.sum())
                losses.append(loss.detach())

            optimizer.step(descend)
            schedule.step()
        self._log_losses(torch.stack(losses).mean(0))

    def _log_losses(self, loss: Tensor) -> None:
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()} after {self.global_step} steps: lower lr, or set grad_clip")
        self.log("train_loss", loss, prog_bar=True, batch_size=1)
        self.log("grad_norm", self.grad_norm, batch_size=1)  # of the last step, before clipping
        self.log("step", float(self.global_step))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # The base class would log the norm here, at every step of a block.
        largest = math.inf if self.hparams["grad_clip"] is None else self.hparams["grad_clip"]
        self.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest)

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps of a block, for the progress bar."""
        return self.data.hparams["steps_per_batch"]

    def count(self, steps: Tensor) -> int:
        """Prompts of a block of steps."""
        return len(steps) * self.data.batch_size

    def flops_per_item(self, steps: Tensor) -> float:
        """Floating-point operations of one training prompt, forward and backward."""
        return self.model.flops()

    # ---- evaluation

    @property
    def data(self) -> Any:
        """The DataModule of the running trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        self._measure("val", rows)

    def test_step(self, rows: Tensor, batch_idx: int) -> None:
        self._measure("test", rows)

    def on_validation_epoch_end(self) -> None:
        self._log_errors("val")

    def on_test_epoch_end(self) -> None:
        self._log_errors("test")

    def _measure(self, split: str, rows: Tensor) -> None:
        for kind, whole in self.data.evaluation(split).items():
            some = whole.rows(rows)
            self.errors[f"{split}_{kind}"].update(some.errors(self(some.prompts.x, some.prompts.y)))  # type: ignore[operator]

    def _reached(self, split: str) -> ByPlace:
        """Errors (..., K) by kind and measure, over all prompts and processes."""
        reached = {}
        for kind in KINDS:
            metric: Any = self.errors[f"{split}_{kind}"]
            reached[kind] = dict(zip(MEASURES, metric.compute(), strict=True))
            metric.reset()
        return reached

    def _log_errors(self, split: str) -> None:
        self.split, self.reached = split, self._reached(split)
        if not self.reached["pretrain"]["mse"].isfinite().all():
            raise UserError(f"the errors are not finite after {self.global_step} steps: lower lr, or set grad_clip")
        self.log_dict(means(split, self.reached), sync_dist=True)
        if self.trainer.state.fn == "fit":
            self.log("step", float(self.global_step), sync_dist=True)  # Lightning would count blocks
            if self.logger and not self.trainer.sanity_checking:
                self.logger.log_metrics(by_place(split, self.reached), self.global_step)

    def figures(self) -> "dict[str, Figure]":
        """Of the last evaluation, for the callback that draws: errors by place beside the references'."""
        if not self.reached:
            return {}
        after = f", {self.global_step:,} steps" if self.trainer.state.fn == "fit" else ""
        drawn = curves(self.reached, self.data.evaluation(self.split))
        return {"errors": errors_by_place(drawn, f"M = {self.config.M}{after}")}

    # ---- use

    def predict_step(self, prompts: list[dict[str, Any]], batch_idx: int) -> list[dict[str, Any]]:
        """One row for every prompt: its place in the file, the predictions of its queries, and ridge's."""
        rows = []
        for prompt in prompts:
            parts = [prompt[name] for name in ("x_context", "y_context", "x_query")]
            answers = {"prediction": predict_from_prompt(self, *parts), "ridge": ridge_from_prompt(self, *parts)}
            rows.append({"index": prompt["index"]} | {name: answer.tolist() for name, answer in answers.items()})
        return rows
