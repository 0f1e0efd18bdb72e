"""ICRTransformer with lightning.Trainer and ordinary DataLoaders, without the zoo's command line and data module."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.cards import run_example
from tests.commands import ROOT
from zoo.icr import ICRegConfig, ICRTransformer, Prompts, dmmse, ridge
from zoo.icr.evaluation import EvaluationBatch, evaluation

# Lightning's advice: a val_dataloader, more workers.
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

CONFIG = ICRegConfig(D=2, K=4, sigma2=0.25, M=8, d_model=16, d_mlp=32, n_heads=2, n_layers=2)
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}  # fmt: skip


class Items(Dataset):
    """Prompts one by one, as named tuples, from which torch's default collate function makes batches."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts.x)

    def __getitem__(self, i: int) -> Prompts:
        return Prompts(*(part[i] for part in self.prompts))


def plain_pairs(n=64, purpose="train"):
    x, y, _ = CONFIG.draw(n, 0, purpose)
    return DataLoader(TensorDataset(x, y), batch_size=16)


def named_tuples(n=64, purpose="train"):
    return DataLoader(Items(CONFIG.draw(n, 0, purpose)), batch_size=16)


@pytest.mark.parametrize("loader", [plain_pairs, named_tuples])
def test_fit_with_a_plain_dataloader(loader, tmp_path):
    model = ICRTransformer(CONFIG, lr=1e-2, warmup_steps=4)
    trainer = Trainer(max_epochs=5, default_root_dir=tmp_path, **QUIET)
    trainer.validate(model, loader(48, "val"), verbose=False)
    before = trainer.callback_metrics["val_loss"].item()
    trainer.fit(model, loader(), loader(48, "val"))
    assert trainer.global_step == 20
    assert trainer.callback_metrics["val_loss"] < 0.95 * before
    has_tasks = loader is named_tuples
    assert ("val_pretrain_noise_free" in trainer.callback_metrics) == has_tasks
    assert trainer.callback_metrics.keys() >= {"val_pretrain_mse", "val_pretrain_to_ridge", "val_pretrain_to_dmmse"}
    assert set(model.figures()) == {"errors"}


def test_metrics_of_plain_validation_batches():
    model, trainer = ICRTransformer(CONFIG), Trainer(**QUIET)
    trainer.validate(model, plain_pairs(50, "val"), verbose=False)
    x, y, _ = CONFIG.draw(50, 0, "val")
    prediction = model(x, y).detach()
    expected = {"mse": y, "to_ridge": ridge(x, y, 0.25), "to_dmmse": dmmse(x, y, CONFIG.pool(), 0.25)}
    for name, target in expected.items():
        value = (prediction - target).square().mean().item()
        assert trainer.callback_metrics[f"val_pretrain_{name}"].item() == pytest.approx(value, rel=1e-5)


def test_validation_batches_of_both_kinds():
    batch = EvaluationBatch(*(evaluation(kind, CONFIG, 30, "val") for kind in ("pretrain", "true")))
    model, trainer = ICRTransformer(CONFIG), Trainer(**QUIET)
    trainer.validate(model, DataLoader([batch], batch_size=None), verbose=False)
    prediction = model(*batch.true.prompts[:2]).detach()
    value = (prediction - batch.true.prompts.y).square().mean().item()
    assert trainer.callback_metrics["val_true_mse"].item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("arguments", [{"config": CONFIG}, vars(CONFIG)])
def test_load_from_checkpoint(arguments, tmp_path):
    model = ICRTransformer(**arguments, lr=1e-2, grad_clip=0.5)
    trainer = Trainer(max_steps=3, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, plain_pairs())
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    loaded = ICRTransformer.load_from_checkpoint(path, weights_only=True)
    assert loaded.config == CONFIG
    assert (loaded.settings.lr, loaded.settings.grad_clip) == (1e-2, 0.5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_predict_with_a_plain_dataloader():
    model = ICRTransformer(CONFIG)
    rows = [row for batch in Trainer(**QUIET).predict(model, plain_pairs(20)) for row in batch]
    x, y, _ = CONFIG.draw(20, 0, "train")
    assert torch.allclose(torch.tensor([row["prediction"] for row in rows]), model(x, y), atol=1e-6)
    assert torch.allclose(torch.tensor([row["ridge"] for row in rows]), ridge(x, y, 0.25), atol=1e-6)


def test_forward_accepts_tensors_and_batches():
    model = ICRTransformer(CONFIG)
    x, y, w = CONFIG.draw(5, 0, "test")
    expected = model(x, y)
    for batch in (Prompts(x, y, w), Prompts(x, y), (x, y), [x, y]):
        assert torch.equal(model(batch), expected)
    with pytest.raises(TypeError, match=r"takes Prompts or tensors \(x, y\)"):
        model(x)


def test_module_compiles():
    model = ICRTransformer(CONFIG)
    x, y, _ = CONFIG.draw(5, 0, "test")
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x, y), model(x, y), rtol=1e-5, atol=1e-5)


def test_example_of_the_card(tmp_path):
    namespace = run_example(ROOT / "zoo" / "icr" / "README.md", tmp_path)
    assert namespace["prediction"].shape == (1,)
    assert namespace["trainer"].global_step == 100
