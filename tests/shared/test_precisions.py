"""Every model in every precision of Lightning: dtypes, exact targets, values close to fp64, refusals, resume."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import DoublePrecision, Precision
from torch.utils.data import DataLoader

from tests.commands import fit
from tests.shared.test_python_use import TEXTS, TOKENIZER, loader
from tests.shared.test_python_use import model as small_model
from zoo.callbacks import Checkpoint, MixedPrecision
from zoo.datamodules import LinearRegressionTasks
from zoo.errors import UserError
from zoo.icr.task import Prompts
from zoo.training.batches import collate, text_rows
from zoo.training.precision import use_precision

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
CASES = {
    "LlamaLM": ("LlamaLM", {}),
    "RevDEQLM": ("RevDEQLM", {"dropout": 0.1}),
    "LlamaClassifier": ("LlamaClassifier", {"lm_weight": 0.5, "bow_features": "tfidf"}),
    "RegressLM": ("RegressLM", {"number_digits": 7, "z_loss": 0.01}),
    "lstm": ("MiniRLM", {"target_scale": "standard"}),
    "transformer": ("MiniRLM", {"encoder": "transformer", "n_heads": 2}),
    "mlp": ("MiniRLM", {"encoder": "mlp", "n_features": 1}),
    "ICRTransformer": ("ICRTransformer", {}),
}
TARGET = 1234567.0  # infinite in fp16, 1236992 in bf16
REGRESSION = ("RegressLM", "lstm", "transformer", "mlp")
# The full table takes half a minute.
QUICK = [("LlamaClassifier", "bf16-true"), ("RegressLM", "bf16-true"), ("lstm", "bf16-true"), ("mlp", "64-true"),
         ("ICRTransformer", "bf16-true"), ("RevDEQLM", "64-true")]  # fmt: skip
TABLE = [
    pytest.param(case, precision, marks=[] if (case, precision) in QUICK else pytest.mark.slow)
    for case in CASES
    for precision in ("bf16-true", "64-true", "bf16-mixed", "16-mixed")
]


def model(case):
    torch.manual_seed(0)
    name, arguments = CASES[case]
    return small_model(name, **arguments)


def data(case):
    if case not in REGRESSION:
        torch.manual_seed(1)
        return loader(CASES[case][0])
    features = [[1e6 + i] for i in range(len(TEXTS))] if case == "mlp" else None
    rows = text_rows(TEXTS, TARGET + np.arange(len(TEXTS)), TOKENIZER, features)
    return DataLoader(rows, batch_size=4, collate_fn=collate)


def trainer(precision, *callbacks, **options):
    is_fp16 = precision == "16-mixed"  # Lightning replaces it on a CPU, the callback does not
    return Trainer(
        precision=None if is_fp16 else precision, logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
        callbacks=[*callbacks, *([MixedPrecision("fp16", devices=("cpu",))] if is_fp16 else [])],
        **{"max_steps": 2, "val_check_interval": 2, "enable_checkpointing": False} | options,
    )  # fmt: skip


class Dtypes(Callback):
    """Note the dtypes of losses, gradients and batches."""

    def on_before_backward(self, trainer, module, loss):
        self.loss = loss.dtype

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {p.grad.dtype for p in module.parameters() if p.grad is not None}

    def on_validation_batch_start(self, trainer, module, batch, *_):
        parts = batch.values() if isinstance(batch, dict) else batch
        self.batch = {part.dtype for part in parts if isinstance(part, torch.Tensor) and part.is_floating_point()}


@pytest.mark.parametrize(("case", "precision"), TABLE)
def test_every_verb(case, precision):
    module, seen = model(case), Dtypes()
    run = trainer(precision, seen)
    run.fit(module, data(case), data(case))
    assert run.precision_plugin.precision == precision
    dtype = TRUE.get(precision, torch.float32)
    assert {p.dtype for p in module.parameters()} == seen.gradients == {dtype}
    assert seen.loss == torch.promote_types(dtype, torch.float32)
    both = {torch.float32, torch.float64}  # features or logits of a bag of words, and targets
    in_batch = {"ICRTransformer": {torch.float32}, "mlp": both, "LlamaClassifier": both}
    is_text = case not in ("LlamaLM", "RevDEQLM")
    assert seen.batch == in_batch.get(case, {torch.float64} if is_text else set())
    # The same steps and losses as in 32 bits, up to the precision.
    reference = model(case)
    exact = trainer("32-true")
    exact.fit(reference, data(case), data(case))
    tolerance = 1e-4 if precision == "64-true" else 0.02
    for name in ("train_loss", "val_loss"):
        assert run.callback_metrics[name].item() == pytest.approx(exact.callback_metrics[name].item(), rel=tolerance)
    if precision == "64-true":
        assert run.callback_metrics["val_loss"].dtype == torch.float64
    [metrics] = trainer(precision).test(module, data(case), verbose=False)
    assert np.isfinite(metrics["test_loss"])
    first = trainer(precision).predict(module, data(case))[0][0]
    if case in REGRESSION:
        assert first["target"] == TARGET


@pytest.mark.parametrize("case", ["LlamaLM", "RegressLM", "ICRTransformer"])
def test_16_true_evaluates_and_does_not_train(case):
    module = model(case)
    with pytest.raises(UserError, match=r"precision 16-true cannot train: .*set it to bf16-true, 16-mixed or"):
        trainer("16-true").fit(module, data(case))
    [low] = trainer("16-true").validate(module, data(case), verbose=False)
    [exact] = trainer("32-true").validate(model(case), data(case), verbose=False)
    assert low["val_loss"] == pytest.approx(exact["val_loss"], rel=0.01)


def test_a_refused_precision_leaves_no_folder(tmp_path, text_file, capsys):
    assert fit(tmp_path / "run", text_file, "--trainer.precision=16-true") == 1
    assert "zoo: --trainer.precision 16-true cannot train" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fp64_runs_resume_bitwise(tmp_path):
    def weights(*limits, folder):
        for steps in limits:
            module, checkpoint = model("LlamaLM"), Checkpoint(str(tmp_path / folder))
            path = tmp_path / folder / "last.ckpt"
            trainer("64-true", checkpoint, max_steps=steps, enable_checkpointing=True).fit(
                module, data("LlamaLM"), data("LlamaLM"), ckpt_path=path if path.exists() else None
            )
        return [p.detach() for p in module.parameters()]

    torch.manual_seed(0)
    uninterrupted, resumed = weights(4, folder="once"), weights(2, 4, folder="parts")
    assert uninterrupted[0].dtype == torch.float64
    assert not torch.equal(uninterrupted[0], uninterrupted[0].float().double())  # fp32 would lose digits
    assert all(map(torch.equal, uninterrupted, resumed))


def test_evaluation_prompts_of_icr_do_not_depend_on_the_precision():
    class Seen(Callback):
        def on_validation_batch_start(self, trainer, module, batch, *_):
            self.batch = batch

    drawn = {}
    for precision in ("32-true", *TRUE):
        seen, tasks = Seen(), LinearRegressionTasks(D=3, K=4, M=8, n_val=8, n_test=8, batch_size=8)
        trainer(precision, seen).validate(model("ICRTransformer"), tasks, verbose=False)
        drawn[precision] = [*seen.batch.true.prompts, *seen.batch.pretrain.answers.values()]
    for precision in TRUE:
        assert all(map(torch.equal, drawn[precision], drawn["32-true"]))
        assert {tensor.dtype for tensor in drawn[precision]} == {torch.float32}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "scale", "tolerance"), [(torch.float16, 2.0**12, 0.01), (torch.bfloat16, 1.0, 0.06)])
def test_losses_and_gradients_under_autocast_are_close_to_fp64(case, dtype, scale, tolerance):
    module, batch = model(case).eval(), next(iter(data(case)))
    if case in ("lstm", "transformer", "mlp"):
        module.fit_scales(batch.targets.numpy(), None if batch.features is None else batch.features.numpy())

    def loss():
        if case in ("LlamaLM", "RevDEQLM"):
            return module.model.loss(*batch)
        if case == "LlamaClassifier":
            return torch.nn.functional.cross_entropy(module(batch), batch.targets[:, 0].long())
        if case == "ICRTransformer":
            return module.losses(Prompts(*batch))
        return module.losses(batch).mean()

    def gradients(value, factor):
        weights = [p for p in module.parameters() if p.requires_grad]
        each = torch.autograd.grad(factor * value, weights, materialize_grads=True)
        return torch.cat([g.double().flatten() for g in each]) / factor

    with torch.autocast("cpu", dtype):
        low = loss()
    low_gradients = gradients(low, scale)
    module.double()
    exact = loss()
    expected = gradients(exact, 1.0)
    assert low.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert low.item() == pytest.approx(exact.item(), rel=tolerance)
    assert (low_gradients - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_set_in_one_place_for_all_models(monkeypatch, tf32):
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    for case in CASES:
        module = model(case)
        run = trainer("32-true", MixedPrecision(tf32=tf32))
        run.callbacks[0].setup(run, module, "fit")
        stub = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")), precision_plugin=Precision())
        use_precision(stub, module, "fit")
    assert chosen == ["high" if tf32 else "highest"] * len(CASES)


def test_fp64_on_mps_is_refused():
    stub = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("mps")), precision_plugin=DoublePrecision()
    )
    with pytest.raises(UserError, match=r"64-true: MPS does not support fp64; add --trainer.accelerator cpu"):
        use_precision(stub, model("LlamaLM"), "validate")
