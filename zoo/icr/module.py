"""ICRTransformer: the LightningModule that trains, evaluates and applies the in-context regression network."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import Diverged, UserError
from zoo.icr.cuda_graph import GraphedNetwork
from zoo.icr.error_metrics import NAMES, ErrorsByKind, PositionErrors, error_curves, errors_by_position, mean_errors
from zoo.icr.evaluation import KINDS, by_kind
from zoo.icr.figures import plot_error_curves
from zoo.icr.model import ICRegConfig, Network
from zoo.icr.predict import Query, model_answers, ridge_answers
from zoo.icr.references import ridge
from zoo.icr.settings import ICRSettings
from zoo.icr.task import Prompts, Task, as_floats, as_prompts
from zoo.private_apis.lightning_api import total_training_steps
from zoo.training.fixed_arguments import field_names
from zoo.training.initial_weights import InitialWeights
from zoo.training.loss_weights import Counts, Loss
from zoo.training.metrics import reset_metrics
from zoo.training.module import ZooModule
from zoo.training.precision import ignore_skipped_first_step
from zoo.training.random_streams import global_seed, stream
from zoo.training.settings import part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORK = field_names(ICRegConfig, *(field.name for field in fields(Task)))  # sizes that the data does not give
DIVERGED = "after {step} steps: lower lr, or set grad_clip"


class ICRTransformer(ZooModule):
    """A transformer that learns linear regression from the examples in its context.

    Raventós et al. 2023, https://arxiv.org/abs/2306.15063. `model(x, y)` maps x (B, k, D) and y (B, k) to predictions
    (B, k).

    Training batches are `Prompts` or plain tensors (x, y), x (B, K, D) and y (B, K). Validation and test batches are
    `EvaluationBatch`es, or the same as training batches, which then count as "pretrain" prompts.

    Logged: `train_loss`; and for `val` and `test`, for the prompts `pretrain` (tasks of the pool) and `true` (new
    tasks), as means over all positions: `<split>_<kind>_mse`; `_noise_free`, the error against w . x without noise (on
    average sigma2 smaller than `_mse`); and the squared distances `_to_ridge` and `_to_dmmse`. All are in squared units
    of y; the paper divides them by D. `val_loss` is `val_pretrain_mse`. TensorBoard also has the errors by position.

    Args:
        config: sizes of task and network, instead of the fields of `ICRegConfig` as keywords. Python only.
        weights: checkpoint of an ICRTransformer, also as zoo:NAME, from whose weights training starts. Its network's
            sizes replace the settings given here; D and K of the data must be equal. Default: random weights.
        compile: train and evaluate through `torch.compile`; on a GPU with CUDA graphs.
        **settings: the fields of `ICRegConfig` and `ICRSettings`.
    """

    internal_arguments: ClassVar[tuple[str, ...]] = ("config",)
    data_arguments: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Task))
    fixed_arguments: ClassVar[tuple[str, ...]] = (*ZooModule.fixed_arguments, *field_names(ICRegConfig))
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "squared error, tasks of the pool": ("train/loss", "val/pretrain_mse", "baseline/pretrain_mse_.*"),
        "squared error, new tasks": ("val/true_mse", "baseline/true_mse_.*"),
        "distance to the exact estimators": ("val/.*_to_.*", "baseline/.*_to_.*"),
    }
    network_arguments: ClassVar[tuple[str, ...]] = ("n_heads", "use_prenorm")
    hparam_metrics: ClassVar[tuple[str, ...]] = ("val_loss", "val_true_mse", "val_true_to_ridge")
    plans_steps: ClassVar[bool] = False  # its rate is constant or a triangle
    item = "prompts"  # unit of the Throughput callback

    def __init__(
        self,
        config: ICRegConfig | None = None,
        compile: bool = False,
        weights: str | None = None,
        **settings: Any,
    ) -> None:
        if config is not None:
            sizes = {field.name: getattr(config, field.name) for field in fields(ICRegConfig)}
            if repeated := [name for name in settings if name in sizes]:
                raise UserError(f"give a config or {', '.join(repeated)}, not both")
            settings |= sizes
        start = InitialWeights(weights, "ICRTransformer", NETWORK)
        settings |= start.settings
        self.settings = ICRSettings(**settings)
        super().__init__(self.settings)
        self.config = part(self.settings, ICRegConfig)
        self.compiles = compile
        self.save_hyperparameters(ignore=["config"])
        # So that a checkpoint depends neither on the defaults nor on the file it started from.
        self.hparams.update(asdict(self.settings) | {"weights": None})
        given = {name: (getattr(self.config, name), f"give the data the {name} of the weights") for name in ("D", "K")}
        start.check_data(None, **given)
        self.model = start.build(self.new_network)
        self.errors = self.build_metrics()
        self._graphed: GraphedNetwork | None = None  # set for training on a GPU
        self._clipped: list[nn.Parameter] = []  # the network's parameters, listed once: a list takes as long as a norm
        self.split = ""  # of the last evaluation
        self.reached: ErrorsByKind = {}  # in the last evaluation

    def new_network(self) -> Network:
        """The network with random weights."""
        network = self.build_network()
        network.initialize(stream(global_seed(), "weights"))
        return network

    def build_network(self) -> Network:
        return Network(self.config)

    def build_metrics(self) -> nn.ModuleDict:
        shape = (*self.model.positions.shape[:-2], self.config.K)  # (K,); (S, K) for stacked members
        names = [f"{split}_{kind}" for split in ("val", "test") for kind in KINDS]
        return nn.ModuleDict({name: PositionErrors(*shape) for name in names})

    def setup(self, stage: str) -> None:
        super().setup(stage)
        device = self.trainer.strategy.root_device.type
        if device == "mps":
            raise UserError("the exact estimators need fp64, which MPS does not support: add --trainer.accelerator cpu")
        if self.compiles:
            self.model.compile()
            if device == "cuda" and self.trainer.world_size == 1:
                self._graphed = GraphedNetwork(self.model)

    def teardown(self, stage: str) -> None:
        self._graphed, self._clipped = None, []  # the weights move to other memory

    def check_data(self, data: Any) -> None:
        """The data must be `LinearRegressionTasks` of the same sizes."""
        if not isinstance(getattr(data, "task", None), Task):
            raise UserError(
                f"ICRTransformer learns from LinearRegressionTasks, not from {type(data).__name__}: give "
                "--data=LinearRegressionTasks"
            )
        self._compare_sizes(data.task)

    def _compare_sizes(self, task: Task) -> None:
        for name in ("D", "K"):
            if (given := getattr(task, name)) != (own := getattr(self.config, name)):
                raise UserError(f"the data has {name} {given}, but the model {own}: make them equal")

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        """Predictions (B, k) of y from x (B, k, D) and y (B, k), k at most K; each from the pairs before it.

        Args:
            x: the inputs; or, without `y`, a batch: `Prompts` or tensors (x, y).
            y: the targets.
        """
        if y is None:
            x, y, _ = as_prompts(x, self.config)
        x, y = (as_floats(name, part).to(self.model.positions) for name, part in (("x", x), ("y", y)))
        if x.ndim != 3:
            raise UserError(f"x must have shape (B, k, D), not {tuple(x.shape)}: pass x[None] for a single prompt")
        return self.model(x, y)

    # ---- training

    def configure_optimizers(self) -> Any:
        total: float = self.trainer.max_steps
        if self.settings.warmup_steps is None:
            total = 0  # a constant rate does not depend on it
        elif total < 0:
            total = total_training_steps(self.trainer)  # a DataLoader for a number of epochs
        if not 0 <= total < math.inf:
            raise UserError("warmup_steps needs an end at which the rate is 0: give --trainer.max_steps")
        if self.settings.warmup_steps is not None:
            self.report_warmup(self.settings.warmup_steps, int(total))
        optimizer = self.settings.build(self.named_parameters())
        schedule = self.settings.schedule(optimizer, int(total))
        ignore_skipped_first_step()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Store the task of the training data, if it names one, so that checkpoints tell what the model has learned."""
        self._clipped = list(self.model.parameters())
        task = getattr(getattr(self.trainer.train_dataloader, "dataset", None), "task", None)
        if isinstance(task, Task):
            self._compare_sizes(task)
            self.config = replace(self.config, **{field.name: getattr(task, field.name) for field in fields(Task)})
            self.hparams.update(asdict(task))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Nothing to seed: without dropout a training step draws no random numbers."""

    def predictions(self, prompts: Prompts) -> Tensor:
        """The network's predictions (..., B, K) of y, computed in the dtype of its weights."""
        dtype = self.model.positions.dtype
        network: Network | GraphedNetwork = self.model
        if self._graphed is not None and torch.is_grad_enabled() and self.trainer.accumulate_grad_batches == 1:
            network = self._graphed
        return network(prompts.x.to(dtype), prompts.y.to(dtype))

    def losses(self, prompts: Prompts) -> Tensor:
        """Mean squared error over prompts and positions: (), or (S,) for stacked members."""
        # The prompts are fp32 in every precision, so that differences are at least fp32.
        return (self.predictions(prompts) - prompts.y).square().mean((-2, -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.losses(as_prompts(batch, self.config))
        # Reading the loss makes the host wait for a GPU, and logging takes time: not in every step.
        if self.logs_this_step or loss.device.type == "cpu":
            self.check_loss(loss)
        return self.step_loss(batch, Loss("train_loss", loss))

    def loss_counts(self, batch: Any) -> Counts:
        """Positions of all prompts of a batch."""
        return [as_prompts(batch, self.config).y.numel()]

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        if self.logs_this_step or self.global_step + 1 == self.trainer.max_steps:
            super().log_losses(losses)

    def check_loss(self, loss: Tensor) -> None:
        """Raises Diverged if the loss is not finite."""
        if not math.isfinite(value := loss.item()):
            raise Diverged(f"the loss is {value} {DIVERGED.format(step=self.global_step)}")

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # The base class logs grad_norm before this.
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self._clipped or self.model.parameters(), self.settings.grad_clip)
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def count(self, batch: Any) -> int:
        """Prompts of a training batch."""
        return as_prompts(batch, self.config).x.shape[0]

    def flops_per_item(self, batch: Any) -> float:
        """Floating-point operations of one training prompt, forward and backward."""
        return self.model.flops()

    # ---- evaluation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._add_errors("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._add_errors("test", batch)

    def on_validation_epoch_end(self) -> None:
        self.log_errors("val")

    def on_test_epoch_end(self) -> None:
        self.log_errors("test")

    def _add_errors(self, split: str, batch: Any) -> None:
        for kind, evaluation in by_kind(batch, self.config).items():
            metric: Any = self.errors[f"{split}_{kind}"]
            metric.update(evaluation, self.predictions(evaluation.prompts))

    def compute_errors(self, split: str) -> ErrorsByKind:
        """The errors of the whole split over all processes, each (..., K); the metrics are reset."""
        errors = {}
        for kind in KINDS:
            metric: Any = self.errors[f"{split}_{kind}"]
            if metric.update_called:
                errors[kind] = dict(zip(NAMES, metric.compute(), strict=True))
            reset_metrics(metric)
        return errors

    def log_errors(self, split: str) -> None:
        """Log the errors of the split that was evaluated."""
        self.split, self.reached = split, self.compute_errors(split)
        if not self.reached["pretrain"]["mse"].isfinite().all():
            raise Diverged(f"the errors are not finite {DIVERGED.format(step=self.global_step)}")
        self.log_dict(mean_errors(split, self.reached), sync_dist=True)
        if self.trainer.state.fn == "fit":
            for logger in [] if self.trainer.sanity_checking else self.loggers:
                logger.log_metrics(errors_by_position(split, self.reached), self.global_step)

    def figures(self) -> "dict[str, Figure]":
        """The last evaluation's errors by position and those of the exact estimators, for the Plots callback."""
        if not self.reached:
            return {}
        after = f", {self.global_step:,} steps" if self.trainer.state.fn == "fit" else ""
        return {"errors": plot_error_curves(error_curves(self.reached), f"M = {self.config.M}{after}")}

    # ---- prediction

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Predictions and those of ridge regression, one row per prompt.

        Args:
            batch: a list of `Query`, whose rows have their "index" in the file and one number per query; or prompts,
                `Prompts` or tensors (x, y), whose rows have one number per position.
            batch_idx: number of the batch; unused.
        """
        if isinstance(batch, list) and isinstance(batch[0], Query):
            rows = []
            for index, *query, line in batch:
                answers = {"prediction": model_answers(self, *query), "ridge": ridge_answers(self, *query)}
                rows.append({"index": index} | {name: _to_json(answer) for name, answer in answers.items()})
                if failed := [name for name, answer in answers.items() if not answer.isfinite().all()]:
                    place = f"line {line}" if line else f"prompt {index}"
                    warnings.warn(
                        f"{place}: the numbers are too large for the {' and the '.join(failed)}, which is null there",
                        stacklevel=2,
                    )
            return rows
        prompts = as_prompts(batch, self.config)
        best = ridge(prompts.x, prompts.y, self.config.sigma2)
        both = zip(self.predictions(prompts).tolist(), best.tolist(), strict=True)
        return [{"prediction": prediction, "ridge": of_ridge} for prediction, of_ridge in both]


def _to_json(values: Tensor) -> list[float | None]:
    """Values (q,) as a list, with None for those that JSON cannot store."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
