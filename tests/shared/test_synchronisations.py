"""On a pretended GPU, training never waits for the device, and every verb of every model runs without a mismatch.

Not counted are the moves of batches, which are asynchronous from pinned memory, the start and the end of a run, and the
steps that are logged or checked, every 50 and every 20 steps by default: those read values on purpose.
"""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from tests.pretended_cuda import CUDA, PretendedStrategy, on_cuda, pretend_cuda
from tests.shared.test_precisions import CASES, data, model
from zoo.callbacks import NonFinite, Throughput
from zoo.callbacks.signal_exchange import SignalExchange
from zoo.datamodules.linear_regression_tasks import LinearRegressionTasks
from zoo.icr.task import Task, draw
from zoo.revdeq import ReconstructionError, solve

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN"),  # the LSTM looks for it
]


def trainer(*callbacks, **options):
    return Trainer(
        strategy=PretendedStrategy(), enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **{"logger": False, "max_steps": 4, "enable_checkpointing": False} | options,
    )  # fmt: skip


class Steps(Callback):
    """What happens in all steps but the first, at which `NonFinite` reads its result, and the last, which ICR logs."""

    def __init__(self, record):
        self.record, self.step = record, 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if self.step == 1:
            self.record.clear()
        if self.step == trainer.max_steps - 1:
            self.synchronisations = list(self.record.synchronisations)
            self.copies = [event for event in self.record.copies_to_device if "apply_func" not in event]


def train(module, loader, folder, **options):
    # A known peak, so that operations are counted.
    with pretend_cuda() as record, mock.patch("zoo.callbacks.throughput.device_flops", return_value=1e12):
        steps = Steps(record)
        run = trainer(
            steps,
            NonFinite(),
            Throughput(),
            logger=CSVLogger(folder),
            gradient_clip_val=1.0,
            limit_val_batches=0,
            **options,
        )
        run.fit(module, loader)
    return run, steps


def cases(*slow):
    return [pytest.param(case, marks=[pytest.mark.slow] if case in slow else []) for case in CASES]


@pytest.mark.parametrize("case", cases("lstm"))
def test_training_steps_do_not_wait(case, tmp_path):
    run, steps = train(model(case), data(case), tmp_path)
    assert run.global_step == 4
    assert steps.synchronisations == []
    assert steps.copies == []


@pytest.mark.parametrize(
    ("case", "changes", "options"),
    [
        ("LlamaLM", {"optimizer": "muon"}, {}),
        ("LlamaLM", {}, {"accumulate_grad_batches": 2, "max_steps": 3}),
    ],
)
def test_training_steps_with_other_settings_do_not_wait(case, changes, options, tmp_path):
    name, arguments = CASES[case]
    with mock.patch.dict(CASES, {case: (name, arguments | changes)}):
        module = model(case)
    _, steps = train(module, data(case), tmp_path, **options)
    assert steps.synchronisations == []
    assert steps.copies == []


def test_drawn_prompts_do_not_wait(tmp_path):
    module = model("ICRTransformer")
    tasks = LinearRegressionTasks(D=3, K=4, M=8, batch_size=4, n_val=4)
    _, steps = train(module, tasks, tmp_path)
    assert steps.synchronisations == []
    assert steps.copies == []


def test_several_pools_of_tasks_do_not_wait():
    tasks = [Task(3, 4, M=M) for M in (4, "inf", 8)]
    with pretend_cuda() as record:
        draw(tasks, 5, 0, 0, device=CUDA)  # copies the pool and its sizes
        record.clear()
        on_device = draw(tasks, 5, 0, 1, device=CUDA)
        assert record.synchronisations == record.copies_to_device == []
        on_device = [part.cpu() for part in on_device]
    for got, expected in zip(on_device, draw(tasks, 5, 0, 1), strict=True):
        assert torch.equal(got, expected)


def test_the_progress_bar_shows_the_loss_of_logged_steps(tmp_path):
    with pretend_cuda():
        run = trainer(logger=CSVLogger(tmp_path), log_every_n_steps=3, limit_val_batches=0)
        run.fit(model("LlamaLM"), data("LlamaLM"))
        shown = run.progress_bar_metrics["train_loss"]
    on_cpu = Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    on_cpu.fit(model("LlamaLM"), data("LlamaLM"))
    assert shown == pytest.approx(on_cpu.progress_bar_metrics["train_loss"], rel=1e-5)


# ---- every verb


@pytest.mark.parametrize("case", cases("RegressLM", "RevDEQLM", "lstm", "transformer"))
def test_every_verb_runs_on_the_device(case):
    module, loader = model(case), data(case)
    on_cpu = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    [expected] = on_cpu.test(module, loader, verbose=False)
    with pretend_cuda() as record:
        [metrics] = trainer().test(module, loader, verbose=False)
        record.clear()
        rows = [row for batch in trainer().predict(module, loader) for row in batch]
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
    assert len(rows) == sum(map(len, (batch[0] for batch in loader)))
    # A few copies for every batch of four rows, and two reads by the Trainer.
    assert len(record.synchronisations) <= 2 + 10 * len(loader)


# ---- RevDEQ


class Noisy(torch.nn.Module):
    """A function that is different at every evaluation."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.calls = 0

    def forward(self, z, x):
        self.calls += 1
        return torch.tanh(self.linear(z) + x) * (1 + 0.1 * self.calls)


def test_wrong_gradients_of_revdeq_are_nan_on_a_gpu():
    with pretend_cuda() as record:
        f = on_cuda(Noisy())
        x = torch.randn(2, 4).to("cuda").requires_grad_()
        record.clear()
        solution = solve(f, x, max_steps=3)
        solution.z.sum().backward()
        assert record.synchronisations == record.copies_to_device == []
        assert solution.failure.item() == pytest.approx(solution.reconstruction_error.item(), rel=1e-6)
        assert solution.failure.item() > 1e-3
        assert x.grad.isnan().all()
        assert f.linear.weight.grad.isnan().all()
        good = solve(on_cuda(torch.nn.Bilinear(4, 4, 4)), x, max_steps=3)
        good.z.sum().backward()
        assert good.failure.item() == 0


@pytest.mark.filterwarnings("ignore:inverting 12 steps of beta 0.9")
def test_wrong_gradients_of_revdeq_end_training_on_a_gpu():
    name, arguments = CASES["RevDEQLM"]
    inexact = {"beta": 0.9, "num_fixed_point_iterations": 12}
    with (
        mock.patch.dict(CASES, {"RevDEQLM": (name, arguments | inexact)}),
        pretend_cuda(),
        pytest.raises(ReconstructionError, match=r"inverting 12 steps of beta 0\.9 missed their start by"),
    ):
        trainer(NonFinite(every_n_steps=1), limit_val_batches=0).fit(model("RevDEQLM"), data("RevDEQLM"))


@pytest.mark.parametrize("solver", ["plain", "anderson", "broyden"])
def test_solvers_without_a_tolerance_do_not_wait(solver):
    with pretend_cuda() as record:
        f = on_cuda(torch.nn.Bilinear(4, 4, 4))
        x = torch.randn(2, 4).to("cuda")
        record.clear()
        solve(f, x, backward="phantom", solver=solver, max_steps=5)
    assert "broyden" in solver or record.synchronisations == []


# ---- several GPUs


def test_signals_are_exchanged_one_step_later():
    gpus = SimpleNamespace(strategy=SimpleNamespace(root_device=CUDA))
    with (
        pretend_cuda() as record,
        mock.patch("torch.distributed.all_reduce", lambda values, op: values[1].fill_(1)),
        mock.patch("torch.cuda.Event"),
    ):
        exchange = SignalExchange()
        received = [exchange.largest(gpus, numbers) for numbers in ([0, 0], [15, 0], [0, 0])]
    assert received == [[0, 0], [0, 1], [15, 1]]
    assert record.synchronisations == []
