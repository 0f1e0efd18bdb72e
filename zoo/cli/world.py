"""The processes (ranks) of a run, as its launcher or its Trainer describes them."""

import os
from typing import Any, NamedTuple

from lightning.pytorch.plugins.environments import SLURMEnvironment

from zoo.private_apis.lightning_trainer import cluster_environment


class World(NamedTuple):
    """The ranks of a run, and the address of their store."""

    rank: int
    size: int
    host: str
    port: int
    is_kept_by_torchrun: bool  # otherwise by rank 0

    @classmethod
    def from_environment(cls) -> "World | None":
        """The ranks that this process's launcher sets in environment variables; None for a single process."""
        variables = os.environ
        if "SLURM_PROCID" in variables and "TORCHELASTIC_RUN_ID" not in variables and SLURMEnvironment.detect():
            slurm = SLURMEnvironment()
            rank, size, host, port = slurm.global_rank(), slurm.world_size(), slurm.main_address, slurm.main_port
        else:
            # torchrun sets RANK; Lightning, for the ranks that it starts on this machine, NODE_RANK and LOCAL_RANK.
            try:
                on_node = int(variables["LOCAL_RANK"])
                rank = int(variables.get("RANK", 1000 * int(variables.get("NODE_RANK", 0)) + on_node))
                size, host, port = int(variables["WORLD_SIZE"]), variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
            except (KeyError, ValueError):
                return None
        return cls(rank, size, host, port, _torchrun_keeps_store()) if size > 1 else None

    @classmethod
    def of(cls, trainer: Any) -> "World | None":
        """The ranks of a trainer before it starts them; None for a single process."""
        environment = cluster_environment(trainer)
        if trainer.world_size == 1 or environment is None:
            return None
        address = environment.main_address, environment.main_port
        return cls(trainer.global_rank, trainer.world_size, *address, _torchrun_keeps_store())


def _torchrun_keeps_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
