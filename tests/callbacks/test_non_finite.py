"""NonFinite: a diverging run ends with one sentence, or the bad steps are left out and counted."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.commands import complaint
from tests.commands import fit as fit_command
from tests.pretended_cuda import PretendedStrategy, pretend_cuda
from zoo.callbacks import Checkpoint
from zoo.callbacks.non_finite import NonFinite
from zoo.errors import UserError


class Line(LightningModule):
    """y = w x; the gradient of a row with x = NaN is NaN."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False)
        self.history = []

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - 1).square().mean()

    def on_train_batch_end(self, *_):
        self.history.append(self.net.weight.item())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)


def fit(callback, rows, **options):
    module = Line()
    trainer = Trainer(
        accelerator="auto" if "strategy" in options else "cpu", max_epochs=1, callbacks=[callback], logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.tensor(rows)[:, None]), batch_size=1))
    return module


def test_nan_gradient_stops_training_and_names_the_step():
    with pytest.raises(UserError, match=r"not finite at step 2\. Lower --model\.lr"):
        fit(NonFinite(), [1.0, 2.0, float("nan"), 1.0])


def test_last_shorter_reading_interval_is_read_at_the_end():
    callback = NonFinite(every_n_steps=100)
    with pytest.raises(UserError, match="step 3"):
        fit(callback, [1.0, 2.0, 1.0, float("inf")])


@pytest.mark.parametrize(("n_rows", "ended_at"), [(6, 4), (2, 2)])
def test_on_a_gpu_values_are_read_together_and_the_first_bad_step_is_named(n_rows, ended_at):
    class Steps(NonFinite):
        def on_exception(self, trainer, pl_module, exception):
            self.ended_at = trainer.global_step

    callback = Steps(every_n_steps=4)
    rows = [1.0, float("nan"), 1.0, 1.0, 1.0, 1.0][:n_rows]
    with pretend_cuda(), pytest.raises(UserError, match="not finite at step 1"):
        fit(callback, rows, strategy=PretendedStrategy())
    assert callback.ended_at == ended_at


def test_skip_leaves_weights_unchanged_and_counts():
    callback = NonFinite(action="skip")
    module = fit(callback, [1.0, float("nan"), 1.0])
    assert callback.skipped_steps == 1
    assert module.history[1] == module.history[0]  # neither momentum nor weight decay moved it
    assert module.history[2] != module.history[1]
    restored = NonFinite(action="skip")
    restored.load_state_dict(callback.state_dict())
    assert restored.skipped_steps == 1


def test_finite_training_is_unchanged():
    torch.manual_seed(0)
    plain = fit(NonFinite(action="skip"), [1.0, 2.0, 3.0]).history
    torch.manual_seed(0)
    checked = fit(NonFinite(), [1.0, 2.0, 3.0]).history
    assert plain == checked


@pytest.mark.parametrize("options", [{"action": "ignore"}, {"every_n_steps": 0}])
def test_settings_outside_their_range_are_refused(options):
    with pytest.raises(UserError, match="non_finite"):
        NonFinite(**options)


# ---- checkpoints and the command line


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Diverged(Line):
        def on_train_batch_end(self, *_):
            self.net.weight.data.fill_(float("inf"))

    trainer = Trainer(
        accelerator="cpu", max_steps=2, callbacks=[Checkpoint(str(tmp_path))], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    rows = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=1)
    with pytest.raises(UserError, match=r"weights are not finite at step 2, so last\.ckpt was not written"):
        trainer.fit(Diverged(), rows)
    assert not list(tmp_path.glob("*.ckpt"))


def test_checkpoint_with_non_finite_weights_is_refused(run, tmp_path, capsys):
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    del checkpoint["zoo_digest"]
    checkpoint["state_dict"]["model.norm.weight"][0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    message = complaint(capsys, 1, "validate", f"--ckpt_path={tmp_path / 'nan.ckpt'}")
    assert "model.norm.weight is not finite: its run had diverged" in message


def test_diverging_fit_exits_with_1_and_leaves_no_checkpoint(text_file, tmp_path, capsys):
    out = tmp_path / "diverged"
    assert fit_command(out, text_file, "--model.lr=1e9") == 1
    assert "training has diverged" in capsys.readouterr().err
    assert not list(out.glob("*.ckpt"))
