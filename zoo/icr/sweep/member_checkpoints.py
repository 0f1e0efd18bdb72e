"""Checkpoint files of single members, split from and stacked into the checkpoint of a stacked model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.callbacks.checkpoint_io import AtomicCheckpointIO
from zoo.errors import UserError
from zoo.files.checkpoints import read_checkpoint
from zoo.icr.module import ICRTransformer
from zoo.icr.sweep.metadata import member_folder
from zoo.icr.sweep.stacked_model import StackedICR, change_tensors
from zoo.icr.task import Diversity
from zoo.registry import registered_name

CALLBACK = "MemberTracking"  # key of that callback's state in checkpoints


class MemberCheckpointIO(AtomicCheckpointIO):
    """Writes a stacked model's checkpoint as one ICRTransformer checkpoint per member, and reads it from these.

    The path `<folder>/last.ckpt` refers to `<folder>/checkpoints_M4/last.ckpt` and so on. A member can therefore be
    resumed together with any others that have reached the same step.

    Args:
        stack: the stacked model, whose current members are saved.
    """

    def __init__(self, stack: StackedICR) -> None:
        super().__init__()
        self.stack = stack

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save the members in the list `storage_options`, or all of them."""
        path = Path(path)
        for place, M in enumerate(self.stack.members):
            if storage_options is None or M in storage_options:
                target = member_folder(path.parent, M) / path.name
                super().save_checkpoint(self._member(checkpoint, place, M), target)

    def _member(self, checkpoint: dict[str, Any], place: int, M: Diversity) -> dict[str, Any]:
        """The checkpoint of one member, as `zoo fit` would have written it."""

        def select(tensor: Tensor) -> Tensor:
            return tensor[place].clone()  # a view would be saved with the whole stack

        # The member's slices of the weights and, except in files with weights only, of the optimizer's state.
        member = dict(checkpoint)
        member["state_dict"] = {name: select(value) for name, value in checkpoint["state_dict"].items()}
        if "optimizer_states" in checkpoint:
            (optimizer,) = checkpoint["optimizer_states"]
            state = {i: change_tensors(of, select) for i, of in optimizer["state"].items()}
            member["optimizer_states"] = [optimizer | {"state": state}]
            record = checkpoint["callbacks"][CALLBACK]["records"].get(str(M))
            member["callbacks"] = {CALLBACK: {"records": {str(M): record} if record else {}}}
        # The settings of the stack, with this member's M.
        task = vars(self.stack.config.with_diversity(M))
        for hparams in ("hyper_parameters", "datamodule_hyper_parameters"):
            own = {name: value for name, value in checkpoint[hparams].items() if "members" not in name}
            member[hparams] = {name: task.get(name, value) for name, value in own.items()}
        # Names of model and data as in a checkpoint of `zoo fit`.
        member["zoo"] = {"model": registered_name(ICRTransformer)}
        member["LinearRegressionTasks"] = member.pop("StackedTasks")  # the data module's state, by its class
        return member

    def _read(self, path: Path) -> dict[str, Any]:
        """The checkpoint of one member, as this class has written it.

        Raises:
            UserError: it has another structure, or its optimizer state does not fit its weights.
        """
        member = read_checkpoint(
            path, required=("state_dict", "callbacks", "optimizer_states", "LinearRegressionTasks")
        )
        states = member["optimizer_states"]
        records = member["callbacks"].get(CALLBACK, {}).get("records")
        own = self.stack.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in member["state_dict"].items()}
        if (
            shapes != {name: tuple(tensor.shape[1:]) for name, tensor in own.items()}
            or len(states) != 1
            or not isinstance(records, dict)
        ):
            raise UserError(f"{path} does not fit the sweep's model and optimizer: remove it, or give another folder")
        return member

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        # Read the file of each member and stack the weights along a new first axis.
        path = Path(path)
        each = [self._read(member_folder(path.parent, M) / path.name) for M in self.stack.members]
        stacked = dict(each[0])
        names = stacked["state_dict"]
        stacked["state_dict"] = {name: torch.stack([one["state_dict"][name] for one in each]) for name in names}
        records = [one["callbacks"][CALLBACK]["records"] for one in each]
        stacked["callbacks"] = {CALLBACK: {"records": {M: record for of in records for M, record in of.items()}}}
        # The optimizer's state: tensors are stacked, numbers such as the step are taken from the first member.
        optimizers = [one["optimizer_states"][0] for one in each]
        state = {}
        for i, first in optimizers[0]["state"].items():
            of = [optimizer["state"][i] for optimizer in optimizers]
            tensors = [name for name, value in first.items() if isinstance(value, Tensor)]
            state[i] = first | {name: torch.stack([one[name] for one in of]) for name in tensors}
        stacked["optimizer_states"] = [optimizers[0] | {"state": state}]
        stacked["StackedTasks"] = stacked.pop("LinearRegressionTasks")
        return stacked
