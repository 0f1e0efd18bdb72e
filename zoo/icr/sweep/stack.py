"""Several ICR transformers trained as one: the same x and noise for all, each with its own pool, loss and updates.

A member of the stack is a run of its own in all but the kernels: it clips its own gradients, stops early by itself, and
has its own checkpoints, which are an ICRTransformer's. A stack is resumed from its members' files, so that a member may
go on beside any others that have come as far.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from zoo.callbacks import Checkpoint
from zoo.callbacks.checkpoint import AtomicCheckpointIO
from zoo.datamodules import LinearRegressionTasks
from zoo.icr.error_metrics import ByPlace, by_place, curves, means
from zoo.icr.evaluation import KINDS, Evaluation
from zoo.icr.figures import errors_by_place
from zoo.icr.model import Network
from zoo.icr.module import ICRTransformer
from zoo.icr.task import Diversity, Prompts, draw
from zoo.registry import registered_name
from zoo.training.checkpoint_file import read_checkpoint


def folder_of(folder: Path, M: Diversity) -> Path:
    """Where a member of the sweep in `folder` lives."""
    return folder / f"checkpoints_M{M}"


def side_by_side(prompts: Sequence[Prompts]) -> Prompts:
    """Prompts over the same x, as one with a leading axis of members."""
    return Prompts(prompts[0].x, torch.stack([p.y for p in prompts]), torch.stack([p.w for p in prompts]))


class StackedTasks(LinearRegressionTasks):
    """`LinearRegressionTasks` for several M at once: y (S, B, K) over one x (B, K, D)."""

    def __init__(self, members: list[Diversity], **settings: Any) -> None:
        super().__init__(**settings)
        self.members = members  # the module's own list, which shrinks
        self._stacked: tuple[list[Diversity], str, dict[str, Evaluation]] | None = None

    def draw(self, step: int) -> Prompts:
        tasks = [self.task.with_diversity(M) for M in self.members]
        return draw(tasks, self.batch_size, self.seed, step, device=self.device)

    def evaluation(self, split: str) -> dict[str, Evaluation]:
        if self._stacked is None or self._stacked[:2] != (self.members, split):
            each = [self.evaluation_of(self.task.with_diversity(M), split) for M in self.members]
            stacked = {}
            for kind in KINDS:
                answers = {n: torch.stack([of[kind].answers[n] for of in each]) for n in each[0][kind].answers}
                stacked[kind] = Evaluation(side_by_side([of[kind].prompts for of in each]), answers)
            self._stacked = list(self.members), split, stacked
        return self._stacked[2]


class StackedICR(ICRTransformer):
    """ICRTransformers of one shape and one seed, a member for each M."""

    def __init__(self, members: list[Diversity], **settings: Any) -> None:
        self.members = members
        super().__init__(**settings)
        self.members_reached: dict[Diversity, ByPlace] = {}  # by the last evaluation
        self.losses = torch.zeros(len(members))  # (S,) of the last block

    def _network(self) -> Network:
        return Network(self.config, len(self.members))

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        if self.members:  # when none is left Lightning validates once more
            super().validation_step(rows, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if (largest := self.hparams["grad_clip"]) is not None:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()  # (S,)
            scale = (largest / (norms + 1e-6)).clamp(max=1)  # as torch's clip_grad_norm_ has it
            for gradient in gradients:
                gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))

    def _log_losses(self, loss: Tensor) -> None:
        self.losses = loss
        self.log("train_loss", loss.nanmean(), prog_bar=True, logger=False, batch_size=1)

    def _log_errors(self, split: str) -> None:
        whole = self._reached(split) if self.members else {}
        for place, M in enumerate(self.members):
            self.members_reached[M] = {k: {name: e[place] for name, e in of.items()} for k, of in whole.items()}

    @torch.no_grad()
    def drop(self, gone: list[Diversity]) -> None:
        """Go on without some members: their weights, and the optimizer's memory of them, leave the stack."""
        if not gone:
            return
        keep = [place for place, M in enumerate(self.members) if M not in gone]
        self.members[:] = [self.members[place] for place in keep]
        if not keep:
            self.trainer.should_stop = True
            return
        state = self.trainer.optimizers[0].state
        for parameter in self.model.parameters():
            parameter.data, parameter.grad = parameter.data[keep], None
            state[parameter] = _members(state[parameter], lambda t: t[keep])
        self.losses, self.errors = self.losses[keep], self._metrics().to(self.device)
        torch.compiler.reset()  # or a few sizes on it would give up compiling


def _members(state: dict[Any, Any], change: Callable[[Tensor], Tensor]) -> dict[Any, Any]:
    """The state of a parameter in the optimizer, with its tensors changed along the members' axis."""
    return {name: change(value) if isinstance(value, Tensor) else value for name, value in state.items()}


class MemberFiles(AtomicCheckpointIO):
    """Writes the checkpoint of a stack as one file for each member, and makes it anew from these.

    `path` names them all: `<folder>/last.ckpt` is `<folder>/checkpoints_M4/last.ckpt` and so on.
    """

    def __init__(self, stack: StackedICR) -> None:
        super().__init__()
        self.stack = stack

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        for place, M in enumerate(self.stack.members):
            if storage_options is None or M in storage_options:
                super().save_checkpoint(self._member(checkpoint, place, M), folder_of(path.parent, M) / path.name)

    def _member(self, checkpoint: dict[str, Any], place: int, M: Diversity) -> dict[str, Any]:
        def pick(tensor: Tensor) -> Tensor:
            return tensor[place].clone()  # a view would drag the whole stack into the file

        one = dict(checkpoint)
        one["state_dict"] = {name: pick(value) for name, value in checkpoint["state_dict"].items()}
        if "optimizer_states" in checkpoint:
            (optimizer,) = checkpoint["optimizer_states"]
            state = {i: _members(of, pick) for i, of in optimizer["state"].items()}
            one["optimizer_states"] = [optimizer | {"state": state}]
            record = checkpoint["callbacks"]["Members"]["records"].get(str(M))
            one["callbacks"] = {"Members": {"records": {str(M): record} if record else {}}}
        task = vars(self.stack.config.with_diversity(M))
        for hparams in ("hyper_parameters", "datamodule_hyper_parameters"):
            one[hparams] = {k: task.get(k, v) for k, v in checkpoint[hparams].items() if k != "members"}
        one["zoo"] = {"model": registered_name(ICRTransformer), "data": registered_name(LinearRegressionTasks)}
        return one

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        path = Path(path)
        each = [read_checkpoint(str(folder_of(path.parent, M) / path.name)) for M in self.stack.members]
        whole = dict(each[0])
        whole["state_dict"] = {n: torch.stack([one["state_dict"][n] for one in each]) for n in whole["state_dict"]}
        records = [one["callbacks"]["Members"]["records"] for one in each]
        whole["callbacks"] = {"Members": {"records": {M: of for some in records for M, of in some.items()}}}
        optimizers = [one["optimizer_states"][0] for one in each]
        state = {}
        for i, first in optimizers[0]["state"].items():
            of = [optimizer["state"][i] for optimizer in optimizers]
            state[i] = first | {n: torch.stack([o[n] for o in of]) for n, v in first.items() if isinstance(v, Tensor)}
        whole["optimizer_states"] = [optimizers[0] | {"state": state}]
        return whole


class Members(Checkpoint):
    """Each member's checkpoints, early stopping and TensorBoard events.

    Args:
        folder: of the sweep.
        checkpoint_every: steps between two `checkpoint_step_<n>.ckpt`, which hold weights alone; the last is always
            kept. None: only that one.
        patience: a member stops after so many evaluations in a row without a new best; None: none does.
        min_delta: by how much an error on the pool's tasks must fall to be a new best.
        eval_every: steps between two evaluations. What is to happen at such a step happens after it.
        report: called with a member, its status and what is known of it, whenever these change.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint_every: int | None,
        patience: int | None,
        min_delta: float,
        eval_every: int,
        report: Callable[..., None],
    ) -> None:
        super().__init__(dirpath=str(folder))
        self.eval_every = eval_every
        self.folder, self.checkpoint_every, self.report = folder, checkpoint_every, report
        self.patience, self.min_delta = patience, min_delta
        self.records: dict[str, dict[str, Any]] = {}  # the best error of each member, and evaluations since
        self._loggers: dict[Diversity, TensorBoardLogger] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        trainer.strategy.checkpoint_io = MemberFiles(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"records": self.records}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = state_dict["records"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses = zip(pl_module.members, pl_module.losses.tolist(), strict=True)
        pl_module.drop(self._failed(trainer, [M for M, loss in losses if not math.isfinite(loss)], "loss"))
        if trainer.global_step % self.eval_every and trainer.global_step != trainer.max_steps:
            if self._due(trainer):
                self._keep(trainer, pl_module.members)
                self._save(trainer, "last.ckpt")
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)  # where a signal is obeyed

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        better: list[Diversity] = []
        broken: list[Diversity] = []
        ended: dict[Diversity, str] = {}
        for M in pl_module.members:
            score = means("val", pl_module.members_reached[M]).get("val_loss", math.nan)
            if not math.isfinite(score):
                broken.append(M)
                continue
            record = self.records.setdefault(str(M), {"best": math.inf, "waited": 0})
            if score < record["best"] - self.min_delta:
                record |= {"best": score, "waited": 0}
                better.append(M)
            else:
                record["waited"] += 1
            if trainer.global_step == trainer.max_steps:
                ended[M] = "done"
            elif self.patience is not None and record["waited"] >= self.patience:
                ended[M] = "stopped early"
            self._log(trainer, pl_module, M)
        if better:
            trainer.save_checkpoint(self.folder / "best.ckpt", storage_options=better)
        pl_module.drop(self._failed(trainer, broken, "error"))
        if kept := pl_module.members if self._due(trainer) else list(ended):
            self._keep(trainer, kept)
        self._save(trainer, "last.ckpt")
        for M, status in ended.items():
            self.report(M, status, step=trainer.global_step, **means("val", pl_module.members_reached[M]))
        pl_module.drop(list(ended))
        super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def _failed(self, trainer: Trainer, members: list[Diversity], what: str) -> list[Diversity]:
        for M in members:
            why = f"the {what} is no longer finite: lower learning_rate"
            self.report(M, "failed", step=trainer.global_step, error=why)
        return members

    def _due(self, trainer: Trainer) -> bool:
        """Whether this step's weights are to be kept."""
        return self.checkpoint_every is not None and trainer.global_step % self.checkpoint_every == 0

    def _keep(self, trainer: Trainer, members: list[Diversity]) -> None:
        path = self.folder / f"checkpoint_step_{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=True, storage_options=members)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        for logger in self._loggers.values():
            logger.finalize("")

    def _log(self, trainer: Trainer, stack: StackedICR, M: Diversity) -> None:
        if M not in self._loggers:
            self._loggers[M] = TensorBoardLogger(str(folder_of(self.folder, M)), name="", version="")
        logger, step, reached = self._loggers[M], trainer.global_step, stack.members_reached[M]
        evaluations = trainer.datamodule.evaluation_of(stack.config.with_diversity(M), "val")  # type: ignore[attr-defined]
        figure = errors_by_place(curves(reached, evaluations), f"M = {M}, {step:,} steps")
        logger.log_metrics(means("val", reached) | by_place("val", reached), step)
        logger.experiment.add_figure("errors", figure, step)
        logger.save()
