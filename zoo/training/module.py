"""Base LightningModule: optimizer, resumable random state, checkpoint metadata."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from zoo.console.argument_names import print_notice
from zoo.errors import UserError, refuse_renamed
from zoo.files.checkpoints import DigestCheckpointIO, available_device, is_remote, read_checkpoint
from zoo.files.memory_limit import file_bytes, memory_limit, tensor_sizes
from zoo.optim import OptimizerConfig, ResumedSchedule
from zoo.private_apis.lightning_api import batch_index, is_fitting, total_training_steps
from zoo.private_apis.lightning_batches import attached_trainer
from zoo.private_apis.lightning_logger import show_in_progress_bar
from zoo.private_apis.lightning_profiler import use_no_profiler
from zoo.registry import registered_name
from zoo.sharding.strategy import shard_module
from zoo.sharding.tensors import are_finite, total_norm
from zoo.tokenizers import Tokenizer, from_state
from zoo.training.fixed_arguments import check_fixed, report_changed
from zoo.training.initial_weights import first_difference, tokenizer_of_weights
from zoo.training.loss_weights import WeightedLosses
from zoo.training.precision import ignore_skipped_first_step, use_precision
from zoo.training.random_streams import derive, global_seed
from zoo.training.stored_settings import check_stored_settings
from zoo.weights import resolve_name


class ZooModule(WeightedLosses):
    """Base class of the zoo's LightningModules.

    A module receives everything as constructor arguments and batches; it never reads `trainer.datamodule`. A subclass
    calls `self.save_hyperparameters(ignore=["tokenizer"])` in its `__init__`. All other arguments must be numbers,
    strings, lists or None, so that checkpoints load under `torch.load(weights_only=True)`.

    Args:
        optimizer_config: settings of the optimizer and its schedule.
        tokenizer: stored in checkpoints and restored from them; None if the model reads no text.
    """

    data_arguments: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments that the command line takes from the data module's attributes of the same names."""

    internal_arguments: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments that the help of the command line leaves out: for Python, or set by checkpoints."""

    renamed_arguments: ClassVar[dict[str, str]] = {}
    """Old name of a constructor argument -> its new name, or a sentence where the argument no longer exists."""

    sharded_methods: ClassVar[tuple[str, ...] | None] = None
    """Methods of the network `model` that a training step calls, `forward` excepted; None: it cannot be sharded."""

    fixed_arguments: ClassVar[tuple[str, ...]] = ("optimizer",)
    """Constructor arguments that a resumed run cannot change; all others take effect from the step of the stop on."""

    network_arguments: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments with which the same weights are another function: a change after training is reported."""

    charts: ClassVar[Mapping[str, Sequence[str]]] = {"loss": ("train/loss", "val/loss", "baseline/loss_.*")}
    """TensorBoard's charts of the model: title -> regular expressions of the names of their lines."""

    hparam_metrics: ClassVar[tuple[str, ...]] = ("val_loss",)
    """Metrics in TensorBoard's table of hyperparameters."""

    plans_steps: ClassVar[bool] = True
    """Whether `plan_steps` can change the length of the schedule during a run, which --budget needs."""

    allow_tf32: bool = True
    """Whether fp32 matrix products on a CUDA GPU use TF32, with 10 bits of mantissa instead of 23."""

    def __new__(cls, *_: Any, **arguments: Any) -> Self:
        """Refuse arguments by their old names, also those that `load_from_checkpoint` reads from old checkpoints.

        Raises:
            UserError: an argument was renamed or removed; the message names the new one.
        """
        refuse_renamed(cls, arguments)
        return super().__new__(cls)

    def __init__(self, optimizer_config: OptimizerConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        optimizer_config.check()
        self.optimizer_config = optimizer_config
        self.tokenizer = tokenizer
        self.total_steps = 0
        """Optimizer steps of the whole run, which the learning-rate schedule covers; set when training starts."""
        self._warmup_share: float | None = None

    @classmethod
    def data_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the data module that follow from the module's, for settings that the user does not give.

        Args:
            settings: the module's arguments.
        """
        tokenizer = tokenizer_of_weights(settings.get("weights")) if "tokenizer" in cls.data_arguments else None
        return {"tokenizer": tokenizer} if tokenizer else {}

    def check_data(self, data: Any) -> None:
        """Compare the module with a data module before a run. The command line calls this; override to add checks.

        Raises:
            UserError: the two do not fit; the message names the options to change.
        """

    @torch.compiler.disable
    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, with numbers of fp64 modules in fp64, where Lightning would round them to fp32.

        Excluded from `torch.compile(module)`, because torch cannot trace Lightning's code.
        """
        if isinstance(value, float) and self.dtype == torch.float64:
            value = torch.tensor(value, dtype=torch.float64, device=self.device)
        super().log(name, value, *args, **kwargs)

    # ---- training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout from (seed, rank, batch number): a resumed run needs no generator state."""
        torch.manual_seed(derive(global_seed(), "step", self.global_rank, batch_index(self.trainer)))

    @property
    def logs_this_step(self) -> bool:
        """Whether the logger records the current optimizer step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here gradients are complete (accumulated, averaged over ranks, unscaled) and not yet clipped.
        if self.logs_this_step:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("grad_norm", total_norm(gradients))
            loss = self.trainer.callback_metrics.get("train_loss")
            if loss is not None and loss.device.type != "cpu":
                show_in_progress_bar(self.trainer, "train_loss", loss)

    def on_validation_epoch_start(self) -> None:
        """Let the loggers count the steps before a validation; Lightning's own number is smaller by one."""
        if self.trainer.state.fn == "fit":
            self.log("step", float(self.global_step), reduce_fx="max", sync_dist=True)

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of the parameter `name`."""
        return 1.0

    def configure_optimizers(self) -> Any:
        """The optimizer, and its learning-rate schedule over all steps of the run.

        Raises:
            UserError: the number of steps is unlimited, or an optimizer setting is outside its range.
        """
        total_steps = total_training_steps(self.trainer)
        if total_steps == float("inf"):
            raise UserError("the learning-rate schedule needs the number of steps: set trainer.max_steps or max_epochs")
        optimizer = self.optimizer_config.build(self.named_parameters(), self.lr_scale)
        self.total_steps = int(total_steps)
        self.report_warmup(self.optimizer_config.warmup_steps, self.total_steps)
        ignore_skipped_first_step()
        schedule = ResumedSchedule(optimizer, lambda step: self.optimizer_config.lr_factor(step, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def report_warmup(self, warmup_steps: int, total_steps: int) -> None:
        """Print a line if the run ends before the learning rate has risen to its peak."""
        if warmup_steps > total_steps and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print_notice(
                f"the learning rate does not reach its peak: warmup_steps is {warmup_steps:,}, and the run ends after "
                f"step {total_steps:,}"
            )

    def plan_steps(self, total_steps: int) -> dict[str, int]:
        """Change the length of the schedule during a run; the warm-up remains the same share of it.

        Args:
            total_steps: optimizer steps of the whole run.

        Returns:
            The settings that repeat this schedule: `warmup_steps`.
        """
        config = self.optimizer_config
        if self._warmup_share is None:
            self._warmup_share = config.warmup_steps / max(self.total_steps, 1)
        self.total_steps = total_steps
        config.warmup_steps = round(self._warmup_share * total_steps)
        settings = {"warmup_steps": config.warmup_steps}
        self.hparams.update(settings)
        return settings

    # ---- several processes

    def sharded_blocks(self) -> Sequence[nn.Module]:
        """Parts of the network `model` that the strategy fsdp2 collects one after the other; see `zoo.sharding`."""
        return ()

    def configure_model(self) -> None:
        """Divide the network among the processes, if the strategy is fsdp2; the Trainer calls this.

        Raises:
            UserError: the model, its precision or one of its settings cannot be combined with this strategy.
        """
        if (trainer := attached_trainer(self)) is not None:
            shard_module(self, trainer)

    # ---- checkpoints

    def setup(self, stage: str) -> None:
        """Prepare the Trainer's precision, profiler and checkpoints, whose digest is verified when one is read."""
        use_precision(self.trainer, self, stage)
        use_no_profiler(self.trainer)
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a user's own plugin stays
            self.trainer.strategy.checkpoint_io = DigestCheckpointIO()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **changes: Any,
    ) -> Self:
        """As Lightning's, for files from elsewhere: verify the digest, and run no code from the file.

        The settings in the file are checked against the constructor's arguments, and the model that they describe
        against the tensors in the file, before memory is used.

        Args:
            checkpoint_path: the file, or weights by name such as "zoo:mini-rlm".
            map_location: device of the module. Default: the device on which it was saved, where there is one.
            hparams_file: as in Lightning: a file with the settings, instead of those in the checkpoint.
            strict: whether the names of the tensors must be equal. Default: the module's own choice.
            weights_only: is always True.
            **changes: constructor arguments that replace those in the file.

        Raises:
            FileNotFoundError: the file does not exist.
            UserError: the file is damaged, its settings do not fit this class or the tensors, or the name is unknown.
        """
        checkpoint_path = resolve_name(checkpoint_path)
        if is_remote(checkpoint_path) or hparams_file is not None:
            return super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, True, **changes)
        location = map_location or available_device
        checkpoint = read_checkpoint(checkpoint_path, required=("state_dict",), map_location=location)
        settings = checkpoint.get("hyper_parameters", {}) | changes
        state = checkpoint["state_dict"]
        n_bytes, n_tensors = tensor_sizes(state)
        n_bytes += sum(file_bytes(settings.get(name)) for name in ("base", "weights", "embeddings"))
        stored_class = check_stored_settings(cls, settings, checkpoint_path)
        try:
            with memory_limit(checkpoint_path, n_bytes, n_tensors):
                module = stored_class(**{name: v for name, v in settings.items() if not name.startswith("_")})
            module.on_load_checkpoint(checkpoint)
            module.load_state_dict(state, strict=module.strict_loading if strict is None else strict)
        except UserError as error:
            is_named = str(checkpoint_path) in str(error)
            raise (error if is_named else UserError(f"{checkpoint_path}: {error}")) from error
        return module.to(next(iter(state.values())).device) if state else module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the model's registered name and the tokenizer; data modules store their own name and settings."""
        checkpoint["zoo"] = {"model": registered_name(self), "seed": global_seed()}
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the tokenizer, unless the constructor was given one; compare the arguments with the stored ones.

        Raises:
            UserError: training is resumed with another value of one of the `fixed_arguments`, or another seed.
        """
        if is_fitting(self):
            names = [name for name in self.fixed_arguments if name not in self.data_arguments]
            check_fixed(checkpoint.get("hyper_parameters", {}), self.hparams, names, "--model.")
            seeds = {"seed_everything": global_seed()}
            stored = checkpoint.get("zoo", {}).get("seed", global_seed())
            check_fixed({"seed_everything": stored}, seeds, seeds, "--")
        report_changed(checkpoint.get("hyper_parameters", {}), self.hparams, self.network_arguments)
        if self.tokenizer is None and "tokenizer" in checkpoint:
            self.tokenizer = from_state(checkpoint["tokenizer"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, except that a missing, unknown or misshapen tensor raises UserError."""
        own = self.state_dict()
        if strict and (difference := first_difference(state_dict, own)):
            name, given, expected = difference
            raise UserError(
                f"the checkpoint does not fit this {type(self).__name__}: {name} is {given} in the file and {expected} "
                "in the model; drop the settings that change the model's sizes"
            )
        for name, tensor in own.items():
            if name in state_dict and state_dict[name].is_floating_point() != tensor.is_floating_point():
                raise UserError(
                    f"the checkpoint does not fit this {type(self).__name__}: {name} is of type "
                    f"{state_dict[name].dtype} in the file and {tensor.dtype} in the model; give another checkpoint"
                )
        names = [name for name, _ in self.named_parameters() if name in state_dict]
        for name, is_finite in zip(names, are_finite([state_dict[name] for name in names]), strict=True):
            if not is_finite:
                raise UserError(
                    f"the checkpoint's tensor {name} is not finite: its run had diverged. Use an earlier checkpoint"
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
