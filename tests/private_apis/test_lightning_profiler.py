"""A Trainer without a profiler measures nothing; one that the user has chosen stays."""

import pytest
from lightning import Trainer
from lightning.pytorch.profilers import SimpleProfiler

from tests.shared.test_python_use import loader, model
from zoo.private_apis.lightning_profiler import NoProfiler

QUIET = {"max_steps": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "limit_val_batches": 0,
         "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_only_the_profiler_of_a_trainer_without_one_is_replaced():
    plain = Trainer(**QUIET)
    plain.fit(model("ICRTransformer"), loader("ICRTransformer"))
    assert type(plain.profiler) is NoProfiler
    assert plain.global_step == 2
    profiled = Trainer(profiler=SimpleProfiler(), **QUIET)
    profiled.fit(model("ICRTransformer"), loader("ICRTransformer"))
    assert len(profiled.profiler.recorded_durations["run_training_batch"]) == 2
    own = NoProfiler()
    with own.profile("a"), own.profile("b"):
        pass
