"""Every model on a CUDA GPU: the losses of a CPU, every precision, no wait for the device, resume, compilation."""

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback

from tests.shared.test_precisions import CASES, TRUE, data, model
from zoo.callbacks import Checkpoint, MixedPrecision, NonFinite, Throughput

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),  # the inductor's advice
    pytest.mark.filterwarnings("ignore:RNN module weights are not part"),  # cuDNN's LSTM in bf16
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


WITH_DROPOUT = ("RevDEQLM", "LlamaClassifier")  # a GPU draws other masks


def trainer(accelerator, *callbacks, **options):
    return Trainer(
        accelerator=accelerator, devices=1, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_steps": 4, "limit_train_batches": 2, "logger": False, "enable_checkpointing": False} | options,
    )  # fmt: skip


def trained(case, accelerator, *callbacks, **options):
    module, run = model(case), trainer(accelerator, *callbacks, **options)
    run.fit(module, data(case), data(case))
    return module, run


@pytest.mark.parametrize("case", CASES)
def test_fp32_equals_the_cpu(case):
    _, on_cpu = trained(case, "cpu", precision="32-true")
    _, on_gpu = trained(case, "gpu", MixedPrecision("off", tf32=False))
    assert on_gpu.precision_plugin.precision == "32-true"
    assert on_gpu.strategy.root_device.type == "cuda"
    for name in ("train_loss", "val_loss") if case not in WITH_DROPOUT else ():
        assert on_gpu.callback_metrics[name].item() == pytest.approx(on_cpu.callback_metrics[name].item(), rel=1e-4)
    expected, got = (
        trainer(accelerator).test(model(case), data(case), verbose=False)[0] for accelerator in ("cpu", "gpu")
    )
    assert got["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "64-true"])
def test_every_precision(case, precision):
    _, on_cpu = trained(case, "cpu", precision="64-true")
    module, on_gpu = trained(case, "gpu", precision=precision)
    assert {p.dtype for p in module.parameters()} == {TRUE.get(precision, torch.float32)}
    # The first steps in fp16 are skipped while its scaler looks for a scale.
    is_exact = precision == "64-true" and case not in WITH_DROPOUT
    tolerance = 1e-6 if is_exact else 0.1 if precision == "16-mixed" else 0.02
    for name in ("train_loss", "val_loss"):
        expected = on_cpu.callback_metrics[name].item()
        assert on_gpu.callback_metrics[name].item() == pytest.approx(expected, rel=tolerance)
    [metrics] = trainer("gpu", precision=precision).test(module, data(case), verbose=False)
    assert metrics["test_loss"] == pytest.approx(on_gpu.callback_metrics["val_loss"].item(), rel=1e-5)
    rows = [row for batch in trainer("gpu", precision=precision).predict(module, data(case)) for row in batch]
    assert len(rows) == sum(len(batch[0]) for batch in data(case))


@pytest.mark.parametrize("case", CASES)
def test_the_default_is_bf16_where_the_gpu_has_it(case):
    _, run = trained(case, "gpu", MixedPrecision())
    expected = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    assert run.precision_plugin.precision == expected


class NoWait(Callback):
    """Makes torch raise an error where a step waits for the device, except in the first step and the last."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        is_between = 0 < trainer.global_step < trainer.max_steps - 1
        torch.cuda.set_sync_debug_mode("error" if is_between else "default")

    def teardown(self, trainer, module, stage):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["bf16", "off"])
def test_training_steps_do_not_wait(case, dtype):
    callbacks = MixedPrecision(dtype), NonFinite(), Throughput(), NoWait()
    run = trainer("gpu", *callbacks, limit_val_batches=0, gradient_clip_val=1.0, max_steps=5)
    try:
        run.fit(model(case), data(case))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.global_step == 5


@pytest.mark.parametrize("case", ["LlamaLM", "RegressLM", "RevDEQLM", "ICRTransformer"])
def test_runs_resume_bitwise_and_checkpoints_load_on_a_cpu(case, tmp_path):
    def weights(*limits, folder):
        for steps in limits:
            module, checkpoint = model(case), Checkpoint(str(tmp_path / folder))
            path = tmp_path / folder / "last.ckpt"
            run = trainer("gpu", checkpoint, MixedPrecision(), max_steps=steps, enable_checkpointing=True)
            run.fit(module, data(case), data(case), ckpt_path=path if path.exists() else None)
        return module, path

    straight, _ = weights(4, folder="straight")
    resumed, path = weights(2, 4, folder="resumed")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    [on_gpu] = trainer("gpu").test(resumed, data(case), verbose=False)
    loaded = type(resumed).load_from_checkpoint(path, map_location="cpu")
    [on_cpu] = trainer("cpu").test(loaded, data(case), verbose=False)
    assert on_cpu["test_loss"] == pytest.approx(on_gpu["test_loss"], rel=1e-3)


@pytest.mark.parametrize("case", ["LlamaLM", "RevDEQLM"])
def test_greedy_generation_equals_the_cpu(case):
    network = model(case).model.eval()
    tokens = torch.randint(257, (2, 5), generator=torch.Generator().manual_seed(2))
    expected = network.generate(tokens, 8, temperature=0)
    assert torch.equal(network.cuda().generate(tokens.cuda(), 8, temperature=0).cpu(), expected)


@pytest.mark.parametrize("case", ["LlamaLM", "RevDEQLM", "ICRTransformer"])
def test_compiled_training_equals_eager_training(case):
    name, arguments = CASES[case]
    _, eager = trained(case, "gpu", MixedPrecision("off", tf32=False))
    compiled_case = {**CASES, case: (name, arguments | {"compile": True})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.shared.test_precisions.CASES", compiled_case)
        _, compiled = trained(case, "gpu", MixedPrecision("off", tf32=False))
    expected = eager.callback_metrics["val_loss"].item()
    assert compiled.callback_metrics["val_loss"].item() == pytest.approx(expected, rel=1e-3)
