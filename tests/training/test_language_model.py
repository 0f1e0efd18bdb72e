"""LanguageModel: plain DataLoaders, checkpoints, predictions, clear errors for wrong batches and vocabulary sizes."""

import math

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.errors import UserError
from zoo.llama import LlamaLM
from zoo.optim import OptimizerConfig
from zoo.text_formats.json_text import dump_json
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import IGNORED, TokenBatch, as_token_batch
from zoo.training.language_model import LanguageModel, required_vocab_size

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*have no `val_dataloader`")
SIZES = {"vocab_size": 257, "dim": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 16}


@pytest.fixture
def loader():
    """Windows of a repeated text as plain (tokens, targets) pairs, 12 in batches of 4."""
    ids = torch.tensor(load_tokenizer("bytes").encode("the quick brown fox ", bos=False) * 10)[:193]
    return DataLoader(TensorDataset(ids[:-1].view(12, 16), ids[1:].view(12, 16)), batch_size=4)


def trainer(folder, **options):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, **off, **options)


def fit_briefly(module, loader, folder):
    """The trainer after two training steps without validation, and a checkpoint model.ckpt in `folder`."""
    fit = trainer(folder, max_steps=2, limit_val_batches=0)
    fit.fit(module, loader)
    fit.save_checkpoint(folder / "model.ckpt")
    return fit


def test_plain_dataloader_trains_validates_and_predicts(loader, tmp_path):
    module = LlamaLM(**SIZES, lr=1e-2, warmup_steps=1)
    fit = trainer(tmp_path, max_epochs=10)
    fit.fit(module, loader, loader)
    assert fit.callback_metrics["val_loss"] < 3 < math.log(257)
    assert "val_word_ppl" not in fit.callback_metrics  # a plain pair carries no word counts
    rows = [row for batch in fit.predict(module, loader) for row in batch]
    assert len(rows) == 12
    assert rows[0].keys() == {"tokens", "loss", "ppl"}
    mean = sum(row["loss"] for row in rows) / 12
    [scores] = fit.validate(module, loader, verbose=False)
    assert scores["val_loss"] == pytest.approx(mean, rel=1e-5)


def test_checkpoint_restores_weights_settings_and_tokenizer(loader, tmp_path):
    module = LlamaLM(**SIZES, lr=1e-2, tokenizer=load_tokenizer("bytes"))
    fit = fit_briefly(module, loader, tmp_path)
    loaded = LlamaLM.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu")
    tokens = next(iter(loader))[0]
    assert torch.equal(loaded.eval()(tokens), module.eval()(tokens))
    assert loaded.model.config == module.model.config
    assert loaded.optimizer_config.lr == 1e-2
    assert loaded.tokenizer.fingerprint == module.tokenizer.fingerprint
    assert loaded.sample_text("the", 3, temperature=0).startswith("the")
    assert fit.predict(loaded, loader)[0][0]["text"] == "he quick brown f"


def test_checkpoint_of_a_module_that_took_vocab_size_from_its_tokenizer(loader, tmp_path):
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    module = LlamaLM(**sizes, tokenizer=load_tokenizer("bytes"))
    assert module.model.config.vocab_size == 257
    fit_briefly(module, loader, tmp_path)
    assert LlamaLM.load_from_checkpoint(tmp_path / "model.ckpt").model.config.vocab_size == 257


def test_forward_accepts_tokens_pairs_and_token_batches(loader):
    module = LlamaLM(**SIZES).eval()
    tokens, targets = next(iter(loader))
    logits = module(tokens)
    assert logits.shape == (4, 16, 257)
    for batch in ((tokens, targets), [tokens, targets], TokenBatch(tokens, targets)):
        assert torch.equal(module(batch), logits)


def test_as_token_batch_names_the_accepted_forms():
    pair = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
    batch = TokenBatch(*pair, torch.arange(2), torch.ones(2))
    assert as_token_batch(batch) is batch
    assert as_token_batch(pair) == TokenBatch(*pair, None, None)
    wrong = {"a tensor of shape": pair[0], "a list of 3 items": [*pair, 1], "a dict of 1 items": {"a": 1}, "a int": 1}
    for description, value in wrong.items():
        with pytest.raises(TypeError, match=rf"TokenBatch or \(tokens, targets\), both \(B, T\), not {description}"):
            as_token_batch(value)


def test_missing_or_contradictory_vocab_size_is_an_error():
    tokenizer = load_tokenizer("bytes")
    assert required_vocab_size(None, tokenizer, "M") == required_vocab_size(257, tokenizer, "M") == 257
    assert required_vocab_size(5, None, "M") == 5
    with pytest.raises(UserError, match="LlamaLM needs vocab_size, the number of token ids in its data, or a tok"):
        LlamaLM(dim=16, n_layers=1, n_heads=2)
    with pytest.raises(UserError, match="vocab_size is 300, but the tokenizer has 257 tokens"):
        LlamaLM(**{**SIZES, "vocab_size": 300}, tokenizer=tokenizer)


class Bigram(nn.Module):
    """A network without the members that a language model needs, except `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Embedding(257, 257)

    def forward(self, tokens):
        return self.logits(tokens), self.logits(tokens)


def test_incomplete_network_is_refused_before_training(loader, tmp_path):
    module = LanguageModel(Bigram(), OptimizerConfig())
    with pytest.raises(TypeError, match="Bigram is not a LanguageModelNetwork: it lacks config, loss, flops_per_token"):
        fit_briefly(module, loader, tmp_path)


def test_unlimited_number_of_steps_is_an_error(loader, tmp_path):
    endless = trainer(tmp_path, max_steps=-1, max_epochs=-1, limit_val_batches=0)
    with pytest.raises(UserError, match=r"set trainer\.max_steps or max_epochs"):
        endless.fit(LlamaLM(**SIZES), loader)


def test_sample_text_without_tokenizer_is_an_error():
    with pytest.raises(UserError, match="cannot sample text without a tokenizer: pass it as tokenizer="):
        LlamaLM(**SIZES).sample_text("a", 1, temperature=0)


def test_predictions_score_only_targets_that_are_not_ignored():
    module = LlamaLM(**SIZES).eval()
    tokens = torch.arange(8).view(2, 4)
    targets = tokens + 1
    targets[0, :3] = IGNORED
    first, second = module.predict_step(TokenBatch(tokens, targets, torch.tensor([5, 6])), 0)
    nll = -module(tokens).log_softmax(-1).gather(-1, (tokens + 1)[..., None])[..., 0]
    assert (first["index"], first["tokens"], second["tokens"]) == (5, 1, 4)
    assert first["loss"] == pytest.approx(nll[0, 3].item(), rel=1e-5)
    assert second["ppl"] == pytest.approx(nll[1].mean().exp().item(), rel=1e-5)


def test_a_window_without_scored_targets_has_no_loss():
    module = LlamaLM(**SIZES).eval()
    tokens = torch.arange(8).view(2, 4)
    targets = torch.stack([torch.full((4,), IGNORED), tokens[1] + 1])
    alone = module.predict_step((tokens[1:], targets[1:]), 0)
    first, second = module.predict_step((tokens, targets), 0)
    assert dump_json(first) == '{"tokens": 0, "loss": null, "ppl": null}'
    assert second["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)


def test_perplexity_beyond_the_range_of_a_float_is_infinite():
    module = LlamaLM(**SIZES).eval()
    with torch.no_grad():
        module.model.tok_embeddings.weight.mul_(1e5)
    [row] = module.predict_step((torch.zeros(1, 4, dtype=torch.long), torch.arange(1, 5)[None]), 0)
    assert row["loss"] > 1000
    assert row["ppl"] == math.inf


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
    module = LlamaLM(**SIZES)
    tokens = torch.full((2, 4), 300)
    with pytest.raises(UserError, match="tokens hold the id 300, which is outside the model's vocabulary of 257"):
        module(tokens)
    with pytest.raises(UserError, match=r"a single row is tokens\[None\]"):
        module(torch.tensor([1, 2, 3]))
    loader = DataLoader(TensorDataset(torch.zeros(2, 4, dtype=torch.long), tokens), batch_size=2)
    with pytest.raises(UserError, match="targets hold the id 300"):
        trainer(tmp_path, max_steps=1).fit(module, loader)
