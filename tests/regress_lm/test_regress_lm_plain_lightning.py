"""RegressLM without the zoo's command line and data modules: Trainer, DataLoader, checkpoints, export; its card."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import zoo.regress_lm
from tests.cards import run_example
from zoo.regress_lm import ExampleInput, RegressLM
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import collate, text_rows

pytestmark = [
    # Lightning's advice for larger data.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no"),
]
TOKENIZER = load_tokenizer("bytes")
SMALL = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1, "num_samples": 8, "val_samples": 2}


def module(**options) -> RegressLM:
    torch.manual_seed(0)
    return RegressLM(tokenizer=TOKENIZER, **{**SMALL, **options})


def loader(targets=None, n=16, **options) -> DataLoader:
    texts = [f"x = {i}" for i in range(n)]
    rows = text_rows(texts, np.arange(n) if targets is None else targets, TOKENIZER)
    return DataLoader(rows, batch_size=8, collate_fn=collate, **options)


def trainer(tmp_path, **options) -> Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=tmp_path, **{**defaults, "enable_checkpointing": False, **options})


def test_rows_with_some_unknown_targets_are_predicted_but_not_scored(tmp_path):
    model = module(n_objectives=3)
    nan = float("nan")
    targets = [[1.0, 2.0, 3.0], [1.0, nan, 3.0], [nan, 2.0, 3.0], [1.0, nan, nan]]
    rows = loader(targets, n=4)
    predicted = trainer(tmp_path).predict(model, rows)[0]
    assert ["target" in row for row in predicted] == [True, False, False, False]
    for wrong in (1, 2):
        with pytest.raises(ValueError, match="row 0: a target is nan"):
            trainer(tmp_path, max_steps=1).fit(model.train(), loader(targets[wrong : wrong + 1], n=1))
    with pytest.raises(ValueError, match="a row has fewer than 3 targets, but scores need all of them"):
        trainer(tmp_path).validate(model, loader(targets[3:], n=1), verbose=False)
    model.val_samples = 0
    trainer(tmp_path, max_steps=1, num_sanity_val_steps=0).fit(
        model.train(), loader(targets[3:], n=1), loader(targets[3:], n=1)
    )


def test_plain_dataloader_fit_validate_predict_and_load_from_checkpoint(tmp_path):
    model, run = module(lr=1e-2, warmup_steps=2), trainer(tmp_path, max_epochs=2)
    run.fit(model, loader(shuffle=True), loader())
    assert run.callback_metrics["val_loss"].isfinite()
    run.validate(model, loader(), verbose=False)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = RegressLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.tokenizer.fingerprint == TOKENIZER.fingerprint
    ours, theirs = run.predict(model, loader()), run.predict(again, loader())
    assert ours == theirs
    assert [row["input"] for row in ours[0]] == [f"x = {i}" for i in range(8)]
    assert ours[0][3]["target"] == 3.0
    batch = next(iter(loader()))
    assert again.eval()(batch).tolist() == [[row["prediction"]] for row in ours[0]]


def test_module_of_a_batch_is_the_point_estimate_without_a_trainer():
    model, batch = module().eval(), next(iter(loader()))
    prediction = model(batch)
    assert prediction.shape == (8, 1)
    assert prediction.dtype == torch.float64
    assert torch.equal(model(batch), prediction)
    assert model.losses(batch).shape == model.log_probs(batch).shape == (8,)


def test_clamped_training_targets_are_announced_once(tmp_path):
    with pytest.warns(UserWarning, match="1 of 16 numbers are beyond the range") as caught:
        trainer(tmp_path, max_epochs=2).fit(module(), loader([1e30, *range(15)]))
    assert sum("clamped" in str(warning.message) for warning in caught) == 1


def test_clamped_targets_of_a_test_are_announced_once_and_the_error_is_that_of_the_target(tmp_path):
    with pytest.warns(
        UserWarning, match=r"a target, 1e\+30, is beyond the range .*, -9.999e\+09 to 9.999e\+09"
    ) as caught:
        [scores] = trainer(tmp_path).test(module(), loader([*range(14), 1e30, -1e20]), verbose=False)
    assert sum("beyond the range" in str(warning.message) for warning in caught) == 1
    assert scores["test_mae"] == pytest.approx(1e30 / 16, rel=1e-6)


def test_wrong_batches_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="the data has 1 target columns, but the model n_objectives 2"):
        trainer(tmp_path, max_epochs=1).fit(module(n_objectives=2), loader())
    pairs = DataLoader([(torch.zeros(3), torch.zeros(1))] * 4, batch_size=2)
    with pytest.raises(
        TypeError, match=r"takes a TextBatch, not a list: make Rows with zoo\.training\.batches\.text_rows"
    ):
        trainer(tmp_path, max_epochs=1).fit(module(), pairs)
    with pytest.raises(ValueError, match="no targets whose loss"):
        module().losses(next(iter(loader(np.full(16, np.nan)))))


def test_a_vocabulary_size_or_a_tokenizer_is_needed():
    with pytest.raises(ValueError, match="RegressLM needs vocab_size"):
        RegressLM(**SMALL)
    with pytest.raises(ValueError, match="vocab_size is 99, but the tokenizer has 257 tokens"):
        RegressLM(vocab_size=99, tokenizer=TOKENIZER, **SMALL)


def test_rounding_of_texts_is_restored_from_a_checkpoint(tmp_path):
    module(round_digits=2, power_tokens=True).save(tmp_path / "model.ckpt")
    again = RegressLM.load(tmp_path / "model.ckpt")
    assert TOKENIZER.decode(again.rows([ExampleInput("x = 0.123")])[0].tokens) == "x = 1.2 e-1"


def test_network_exports_to_one_graph():
    torch.manual_seed(0)
    network = EncoderDecoder(RegressLMConfig(30, 13, 7, dim=32, n_heads=2, max_input_len=16)).eval()
    tokens, numbers = torch.randint(30, (2, 9)), torch.randint(13, (2, 7))
    exported = torch.export.export(network, (tokens, numbers)).module()
    torch.testing.assert_close(exported(tokens, numbers), network(tokens, numbers))


def test_network_imports_without_lightning():
    script = "import sys, zoo.regress_lm.model, zoo.regress_lm.decoding; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_card_example(tmp_path):
    namespace = run_example(Path(zoo.regress_lm.__file__).parent / "README.md", tmp_path)
    assert namespace["predictions"][0].keys() >= {"input", "prediction", "median", "quantiles"}
