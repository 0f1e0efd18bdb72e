"""MiniRLM without the zoo's command line and data modules: Trainer, DataLoader, checkpoints, export; its card."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import zoo.mini_rlm
from tests.cards import run_example
from zoo.errors import UserError
from zoo.mini_rlm import MiniRLM, MiniRLMConfig, MiniRLMNetwork
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import collate, text_rows

pytestmark = [
    # Lightning's advice for larger data.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no"),
]
TOKENIZER = load_tokenizer("characters")
SIZES = {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
TARGETS = 100.0 + 3 * np.arange(16)


def module(encoder="lstm", **options) -> MiniRLM:
    torch.manual_seed(0)
    features = {"n_features": 1} if encoder == "mlp" else {}
    return MiniRLM(encoder, tokenizer=TOKENIZER, **{**SIZES, **features, **options})


def loader(targets=TARGETS, **options) -> DataLoader:
    n = len(targets)
    rows = text_rows([f"x = {i}" for i in range(n)], targets, TOKENIZER, np.arange(n)[:, None])
    return DataLoader(rows, batch_size=8, collate_fn=collate, **options)


def trainer(tmp_path, **options) -> Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=tmp_path, **{**defaults, "enable_checkpointing": False, **options})


@pytest.mark.parametrize("encoder", ["lstm", "transformer", "mlp"])
def test_plain_dataloader_fit_validate_predict_and_load_from_checkpoint(encoder, tmp_path):
    model, run = module(encoder, warmup_steps=2), trainer(tmp_path, max_epochs=2)
    run.fit(model, loader(shuffle=True), loader())
    assert model.target_scale.centre.item() == np.median(TARGETS)  # fitted to the training rows
    assert run.callback_metrics["val_mae"].isfinite()
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = MiniRLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    ours, theirs = run.predict(model, loader()), run.predict(again, loader())
    assert ours == theirs
    assert ours[1][0]["target"] == TARGETS[8]
    batch = next(iter(loader()))
    expected = torch.tensor([[row["prediction"]] for row in ours[0]], dtype=torch.float64)
    torch.testing.assert_close(again.eval()(batch), expected)


def test_scales_of_a_loaded_model_are_kept_when_it_trains_on(tmp_path):
    model, run = module(), trainer(tmp_path, max_epochs=1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = MiniRLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    trainer(tmp_path, max_epochs=1).fit(again, loader(10 * TARGETS))
    assert again.target_scale.centre.item() == np.median(TARGETS)


def test_scales_can_be_fitted_by_hand(tmp_path):
    model = module()
    model.fit_scales(np.array([[1.0], [2.0], [9.0]]))
    trainer(tmp_path, max_epochs=1).fit(model, loader())
    assert model.target_scale.centre.item() == 2.0


def test_a_class_out_of_range_is_named_in_training_and_evaluation(tmp_path):
    good, bad = np.arange(16) % 3, np.full(16, 3)
    with pytest.raises(ValueError, match=r"a target is 3, but n_classes 3 means one of 0 \.\.\. 2"):
        trainer(tmp_path, max_epochs=1).fit(module(n_classes=3), loader(bad))
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    for evaluate in (run.validate, run.test):
        with pytest.raises(ValueError, match=r"a target is 3, but n_classes 3 means one of 0 \.\.\. 2"):
            evaluate(module(n_classes=3), loader(bad), verbose=False)
    run.fit(module(n_classes=3), loader(good), loader(good))
    assert run.callback_metrics["val_accuracy"].isfinite()


def test_wrong_data_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(TypeError, match="takes a TextBatch, not a list"):
        module().check_batch([1, 2])
    pairs = DataLoader([(torch.zeros(3), torch.zeros(1))] * 4, batch_size=2)
    with pytest.raises(TypeError, match=r"a map-style dataset of zoo\.training\.batches\.Row"):
        trainer(tmp_path, max_epochs=1).fit(module(), pairs)
    with pytest.raises(ValueError, match="the data gives 1 numbers for a text, but the model has n_features 4"):
        trainer(tmp_path, max_epochs=1).fit(module("mlp", n_features=4), loader())
    with pytest.raises(ValueError, match="MiniRLM needs vocab_size"):
        MiniRLM()


def test_transformer_exports_to_one_graph():
    torch.manual_seed(0)
    network = MiniRLMNetwork(MiniRLMConfig(encoder="transformer", vocab_size=20, dim=16, n_heads=2)).eval()
    tokens, padding_mask = torch.randint(20, (2, 9)), torch.arange(9) < torch.tensor([[9], [5]])
    exported = torch.export.export(network, (tokens, padding_mask)).module()
    torch.testing.assert_close(exported(tokens, padding_mask), network(tokens, padding_mask))


def test_network_imports_without_lightning():
    script = "import sys, zoo.mini_rlm, zoo.mini_rlm.model; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_card_example(tmp_path):
    namespace = run_example(Path(zoo.mini_rlm.__file__).parent / "README.md", tmp_path)
    assert len(namespace["predictions"]) == 40


def test_features_that_are_not_finite_are_refused(tmp_path):
    rows = text_rows(["x = 1", "x = 2"], [1.0, 2.0], TOKENIZER, np.array([[1.0], [np.nan]]))
    wrong = DataLoader(rows, batch_size=2, collate_fn=collate)
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    model = module("mlp")
    with pytest.raises(UserError, match="row 1: a number in the text is NaN"):
        Trainer(max_steps=1, default_root_dir=tmp_path, **options).fit(model, wrong)
    rows[1] = rows[1]._replace(features=(1e39,))  # infinite in fp32
    with pytest.raises(UserError, match="row 1: a number in the text is NaN, infinite or beyond the range of fp32"):
        model(collate(rows))
    beyond = [rows[0]._replace(tokens=[10_000])]
    with pytest.raises(UserError, match="tokens hold the id 10000, which is outside the model's vocabulary"):
        module()(collate(beyond))
