"""A run that ends during the warm-up of its learning rate says so."""

import pytest
from lightning.pytorch import Trainer

from tests.commands import TEXT, fit
from zoo.datamodules import LinearRegressionTasks
from zoo.icr import ICRTransformer


def notices(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "reach its peak" in line]


@pytest.mark.parametrize(("warmup", "steps"), [(5, 2), (3, 1), (2, 2), (0, 1)])
def test_fit_reports_a_warmup_longer_than_the_run(warmup, steps, tmp_path, capsys):
    (tmp_path / "fox.txt").write_text(TEXT)
    fit(tmp_path / "run", tmp_path / "fox.txt", f"--model.warmup_steps={warmup}", max_steps=steps)
    expected = (
        f"zoo: the learning rate does not reach its peak: warmup_steps is {warmup}, and the run ends after step {steps}"
    )
    assert notices(capsys) == ([expected] if warmup > steps else [])


@pytest.mark.parametrize("warmup", [None, 2, 9])
def test_icr_reports_it_where_the_rate_has_a_warmup(warmup, tmp_path, capsys):
    sizes = {"D": 2, "K": 3, "M": 4}
    model = ICRTransformer(**sizes, d_model=8, d_mlp=8, n_heads=1, n_layers=1, warmup_steps=warmup)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=2, limit_val_batches=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, LinearRegressionTasks(**sizes, batch_size=4, n_val=4))
    assert len(notices(capsys)) == (warmup == 9)
