"""Trainer internals that callbacks, signals and exit codes need. Written for lightning 2.6.

Private members used: `Trainer._default_root_dir`; the setter of `Strategy.precision_plugin`; `SIGTERMException`;
`Trainer._signal_connector` and its method `register_signal_handlers`;
`Trainer._accelerator_connector.cluster_environment`; `_PredictionLoop` and its property `skip`; `_FitLoop`, its method
`setup_data` and the wording of its errors about `val_check_interval`.
tests/private_apis/test_lightning_trainer.py fails when one of them changes.
"""

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.prediction_loop import _PredictionLoop
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from zoo.errors import UserError

__all__ = [
    "SIGTERMException",
    "cluster_environment",
    "explain_long_interval",
    "keep_signal_handlers",
    "predict_on_every_rank",
    "requeues",
    "set_default_root_dir",
    "set_precision",
]


def set_default_root_dir(trainer: Trainer, folder: str) -> None:
    """Change the Trainer's folder; call this in a callback's `setup`, before anything is written."""
    trainer._default_root_dir = folder  # type: ignore[attr-defined]


def set_precision(trainer: Trainer, plugin: Precision) -> None:
    """Replace the Trainer's precision plugin; call this in a callback's `setup`, before the strategy is set up."""
    trainer.strategy.precision_plugin = plugin


def cluster_environment(trainer: Trainer) -> ClusterEnvironment | None:
    """The cluster environment, with this rank's number and the first one's address; None with one process."""
    return trainer._accelerator_connector.cluster_environment


def requeues(trainer: Trainer) -> bool:
    """Whether SIGUSR1 requeues the job: in a SLURM job, unless SLURMEnvironment(auto_requeue=False) is given."""
    environment = cluster_environment(trainer)
    return isinstance(environment, SLURMEnvironment) and environment.auto_requeue


def keep_signal_handlers(trainer: Trainer) -> None:
    """Leave signals as they are handled already.

    Lightning's own handlers let the current stage go on to the end of a batch, and start a collective operation while
    another may be running; under SLURM its ranks save at the steps at which each happens to receive the signal.
    """
    trainer._signal_connector.register_signal_handlers = _register_nothing  # type: ignore[method-assign]


class _LoopOfEveryRank(_PredictionLoop):
    """A prediction loop whose hooks run also in a process without batches: they may wait for each other."""

    @property
    def skip(self) -> bool:
        return self.trainer.limit_predict_batches == 0 if self.trainer.world_size > 1 else super().skip


def predict_on_every_rank(trainer: Trainer) -> None:
    """Run the hooks of `predict` in every process; Lightning leaves them out in a process without batches."""
    if type(trainer.predict_loop) is _PredictionLoop:  # a user's own loop stays
        trainer.predict_loop.__class__ = _LoopOfEveryRank


class _ExplainingFitLoop(_FitLoop):
    """A fit loop that reports an interval of validations that does not suit the data in the zoo's words."""

    def setup_data(self) -> None:
        try:
            super().setup_data()
        except (ValueError, MisconfigurationException) as error:
            if isinstance(error, UserError) or "val_check_interval" not in str(error):
                raise
            interval = self.trainer.val_check_interval
            if isinstance(interval, float):
                raise UserError(
                    f"--trainer.val_check_interval {interval} is a share of an epoch, but the number of batches of "
                    "an epoch is not known for these data: set it to a number of batches"
                ) from error
            batches = f"the {self.max_batches} batches" if self.max_batches > 1 else "the only batch"
            raise UserError(
                f"--trainer.val_check_interval {interval} is more than {batches} of an epoch: add "
                "--trainer.check_val_every_n_epoch null, which counts the batches of all epochs, or set it to at most "
                f"{self.max_batches}"
            ) from error


def explain_long_interval(trainer: Trainer) -> None:
    """Make `fit` raise a UserError where no validation could run within an epoch; Lightning raises a ValueError."""
    if type(trainer.fit_loop) is _FitLoop:  # a user's own loop stays
        trainer.fit_loop.__class__ = _ExplainingFitLoop


def _register_nothing() -> None:  # a function of the module, so that a Trainer can be pickled
    pass
