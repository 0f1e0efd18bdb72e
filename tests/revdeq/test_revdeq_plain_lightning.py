"""RevDEQLM with plain Lightning: Trainer, DataLoader, load_from_checkpoint, predict, torch.compile, torch.export."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from tests.cards import run_example
from tests.commands import ROOT
from zoo.errors import UserError
from zoo.revdeq import RevDEQ, RevDEQConfig, RevDEQLM
from zoo.training.batches import TokenBatch

SIZES = {"vocab_size": 11, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "mlp_layers": 1}
TRAINER = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip
# Lightning recommends worker processes and a shorter logging interval; a tiny data set needs neither.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def module(**options):
    return RevDEQLM(**{**SIZES, "max_position_embeddings": 16, "block": "post_norm", "lr": 1e-2, **options})


def loader(**options):
    """Pairs (tokens, targets) of sequences that count modulo 11."""
    numbers = (torch.arange(64)[:, None] + torch.arange(13)) % 11
    return DataLoader(TensorDataset(numbers[:, :-1], numbers[:, 1:]), batch_size=16, **options)


@pytest.fixture
def trained(tmp_path):
    """A module trained on a plain DataLoader, and its checkpoint."""
    model, trainer = module(warmup_steps=5), Trainer(max_steps=60, **TRAINER)
    trainer.fit(model, loader(shuffle=True), loader())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert trainer.callback_metrics["val_loss"] < 0.1  # log(11) = 2.4 before training
    return model, tmp_path / "model.ckpt"


def test_trains_on_a_plain_dataloader_and_loads_from_its_checkpoint(trained):
    model, path = trained
    loaded = RevDEQLM.load_from_checkpoint(path)
    tokens, _ = next(iter(loader()))
    assert loaded.hparams.block == "post_norm"
    assert torch.equal(loaded.eval()(tokens), model.eval()(tokens))
    assert loaded.model.generate(torch.tensor([[3, 4, 5]]), 5, temperature=0).tolist() == [[3, 4, 5, 6, 7, 8, 9, 10]]


def test_predict_scores_every_row(trained):
    model, _ = trained
    rows = [row for batch in Trainer(**TRAINER).predict(model, loader()) for row in batch]
    assert len(rows) == 64
    assert all(row.keys() == {"tokens", "loss", "ppl"} and row["tokens"] == 12 and row["loss"] < 0.5 for row in rows)


def test_forward_accepts_tokens_pairs_and_token_batches():
    model = module().eval()
    tokens, targets = next(iter(loader()))
    logits = model(tokens)
    assert logits.shape == (16, 12, 11)
    assert torch.equal(model((tokens, targets)), logits)
    assert torch.equal(model(TokenBatch(tokens, targets)), logits)


def test_missing_vocab_size_raises_user_error():
    with pytest.raises(UserError, match="RevDEQLM needs vocab_size"):
        RevDEQLM(hidden_size=32, num_heads=2)


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_trains_with_every_optimizer(optimizer):
    trainer = Trainer(max_steps=60, **TRAINER)
    trainer.fit(module(warmup_steps=5, optimizer=optimizer, lr=0.02), loader(shuffle=True), loader())
    assert trainer.callback_metrics["val_loss"] < 1.5


@pytest.mark.slow
def test_compiled_module_makes_the_same_training_step():
    weights = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = module(warmup_steps=0)
        Trainer(max_steps=1, **TRAINER).fit(torch.compile(model) if compile else model, loader(), loader())
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"block": "post_norm", "positions": "rotary"}])
def test_network_exports_for_inference(kind):
    torch.manual_seed(0)
    network = RevDEQ(RevDEQConfig(**SIZES, max_position_embeddings=16, **kind)).eval()
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=16)
    tokens = torch.randint(11, (2, 7))
    with torch.no_grad():
        exported = torch.export.export(network, (tokens,), dynamic_shapes=({0: batch, 1: length},)).module()
        for shape in ((2, 7), (3, 12)):
            tokens = torch.randint(11, shape)
            torch.testing.assert_close(exported(tokens)[0], network(tokens)[0], rtol=0, atol=1e-5)


def test_example_of_the_card_runs(tmp_path):
    variables = run_example(ROOT / "zoo" / "revdeq" / "README.md", tmp_path)
    assert variables["text"].startswith("3 4 5 6 7")
