"""The strategy `fsdp2`: Lightning's ModelParallelStrategy with sharded parameters only, and with the zoo's checkpoints.

    zoo fit --config llama --trainer.strategy fsdp2 --trainer.devices 8

During validation, test and prediction every process holds the complete parameters, so that processes may have different
numbers of batches, and generation and decoding work as in one process.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    StrategyRegistry,
)
from torch import Tensor

from zoo.errors import UserError, check_counts
from zoo.files.checkpoint_folders import (
    assign,
    copy_nested,
    is_checkpoint_folder,
    read_meta,
    read_tensors,
    tensors_in,
    verify_files,
)
from zoo.files.checkpoints import check_structure, read_checkpoint
from zoo.private_apis.fsdp_api import OpenModelParallelStrategy
from zoo.sharding.network import collect, release, shard
from zoo.sharding.tensors import is_divided, is_sharded, shard_like

NAME = "fsdp2"


class FullySharded(OpenModelParallelStrategy):
    """Divide parameters, gradients and optimizer state among processes (FSDP2).

    A checkpoint is a folder; `zoo consolidate` turns it into one file. All processes see the folder, so on several
    machines it must be on a shared file system.

    Args:
        shard_size: number of processes that share one copy of the model, a divisor of the number of all processes; for
            example the GPUs of one machine, so that parameters are not sent between machines. Default: all processes.
        process_group_backend: torch's backend, such as "nccl" or "gloo". Default: the one for the device.
    """

    def __init__(self, shard_size: int | None = None, process_group_backend: str | None = None) -> None:
        if shard_size is not None:
            check_counts(shard_size=shard_size)
        super().__init__(shard_size, process_group_backend=process_group_backend)
        self._is_collected = False
        self._folder: Path | None = None  # of the checkpoint that is being loaded

    def check_processes(self, processes: int) -> None:
        if self.shard_size is not None and processes % self.shard_size:
            raise UserError(
                f"--trainer.strategy.shard_size {self.shard_size} does not divide the {processes} processes: set it to "
                "a divisor, or leave it out"
            )

    def check_sizes(self, sizes: Sequence[Any]) -> None:
        for rank, size in enumerate(sizes):
            if size != sizes[0]:
                values = ["not set" if value is None else value for value in (sizes[0], size)]
                raise UserError(
                    f"--trainer.strategy.shard_size is {values[0]} on rank 0 and {values[1]} on rank {rank}: start all "
                    "processes with the same command"
                )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every process sees different data, also those that share a copy of the model."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def setup(self, trainer: Any) -> None:
        # Tensors made in inference mode could not be used in training afterwards.
        loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in loops:
            loop.inference_mode = False
        # Nothing changes a network's output in place, which torch warns against at every step.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        super().setup(trainer)

    # ---- evaluation with complete parameters

    def _collect(self) -> None:
        collect(self.lightning_module.model)  # type: ignore[union-attr]
        self._is_collected = True

    def _release(self) -> None:
        release(self.lightning_module.model)  # type: ignore[union-attr]
        self._is_collected = False

    on_validation_start = on_test_start = on_predict_start = _collect
    on_validation_end = on_test_end = on_predict_end = _release

    # ---- checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return super(ModelParallelStrategy, self).optimizer_state(optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the folder `filepath` of the first process; all processes must call this."""
        self.checkpoint_io.save_checkpoint(checkpoint, self.broadcast(filepath), storage_options=storage_options)
        if self._is_collected:  # reading the state has released the parameters
            self._collect()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A folder, whose tensors are read later, or the file of a run that was not sharded."""
        path = Path(self.broadcast(checkpoint_path))
        self._folder = path if is_checkpoint_folder(path) else None
        if self._folder is None:
            return read_checkpoint(path, required=("state_dict",))
        checkpoint = read_meta(path)
        check_structure(checkpoint, path, ("state_dict",))
        verify_files(path, checkpoint)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module: Any = self.lightning_module
        own = module.state_dict()
        state = self._distributed(checkpoint["state_dict"], ("state_dict",), lambda place: own.get(place[0]))
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = checkpoint["optimizer_states"]
        for number, (optimizer, state) in enumerate(zip(self.optimizers, states, strict=True)):
            parameters = _parameters(optimizer)
            place = ("optimizer_states", number)
            optimizer.load_state_dict(self._distributed(state, place, lambda at: parameters.get(at[:-1])))  # noqa: B023

    def _distributed(self, state: Any, place: tuple[Any, ...], target: Callable[[tuple[Any, ...]], Any]) -> Any:
        """A copy of stored state in which tensors are divided among the processes like others of their shape.

        Args:
            state: nested dictionaries and lists; tensors on the device "meta" are read from the folder.
            place: place of the state in the checkpoint.
            target: place inside the state -> the tensor that decides how the one there is divided, or None.
        """
        state, wanted = copy_nested(state), {}
        for at, tensor in list(tensors_in(state)):
            like = target(at)
            is_alike = is_divided(like) and like.shape == tensor.shape
            if tensor.is_meta:
                template = like if is_alike else tensor
                new = torch.empty_like(template, dtype=tensor.dtype, device=self.root_device)
                wanted[".".join(map(str, (*place, *at)))] = new
                assign(state, at, new)
            elif is_alike:
                assign(state, at, shard_like(tensor, like))
        if wanted:
            read_tensors(self._folder, wanted)  # type: ignore[arg-type]
        return state


StrategyRegistry.register(NAME, FullySharded, description="parameters divided among processes (FSDP2)")


def _parameters(optimizer: Any) -> dict[tuple[Any, ...], Tensor]:
    """The parameter that each entry of an optimizer's state belongs to, by the place of the entry."""
    parts: dict[tuple[Any, ...], Any] = {(): optimizer}
    if hasattr(optimizer, "parts"):
        parts = {("parts", number): part for number, part in enumerate(optimizer.parts)}
    return {
        (*place, "state", number): parameter
        for place, part in parts.items()
        for number, parameter in enumerate(p for group in part.param_groups for p in group["params"])
    }


def shard_module(module: Any, trainer: Any) -> None:
    """Divide the network of a LightningModule among the processes, if the Trainer's strategy is `fsdp2`.

    Args:
        module: has the members `model`, `sharded_methods` and `sharded_blocks()` of `ZooModule`.
        trainer: its Trainer.

    Raises:
        UserError: the module, its precision or one of its settings cannot be combined with this strategy.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy):
        return
    if not isinstance(strategy, FullySharded):
        raise UserError(f"{type(strategy).__name__} is not supported: set --trainer.strategy {NAME}")
    if module.sharded_methods is None:
        raise UserError(f"{type(module).__name__} cannot be sharded: set --trainer.strategy ddp instead of {NAME}")
    if is_sharded(module.model):
        return
    precision = trainer.precision
    if precision not in ("32-true", "bf16-mixed"):
        raise UserError(
            f"--trainer.strategy {NAME} does not support precision {precision}: set --trainer.precision to bf16-mixed "
            "or 32-true"
        )
    if getattr(module, "compiles", False):
        raise UserError(f"--model.compile true does not work with --trainer.strategy {NAME}: drop one of them")
    if module.optimizer_config.optimizer == "adafactor":
        raise UserError(f"--model.optimizer adafactor does not work with --trainer.strategy {NAME}: set adamw or muon")
    is_mixed = isinstance(trainer.precision_plugin, MixedPrecision)
    mesh = strategy.device_mesh
    if mesh.shape[0] == 1:
        mesh = mesh["tensor_parallel"]
    shard(module.model, module.sharded_blocks(), module.sharded_methods, mesh, torch.bfloat16 if is_mixed else None)
