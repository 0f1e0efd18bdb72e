"""LlamaLM: training, exact resumption, perplexities, pretrained weights, torch.compile and torch.export."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.cards import run_example
from tests.resume import BATCH_END, EPOCH_END, VALIDATION_END, assert_resume_is_bitwise
from tests.trainers import quiet_trainer
from zoo.__main__ import main
from zoo.datamodules import TextLM
from zoo.errors import UserError
from zoo.llama import LlamaConfig, LlamaLM, load_checkpoint

TEXT = "the quick brown fox\njumps over the lazy dog\n" * 80
STORY = "f5a0e67db7424051520e7d8db9880b3dc2aa13577db570c28805c1b51c42eaf0"  # sha256 of what llama2.c's run.c prints
SIZES = {"vocab_size": 257, "dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "fox.txt"
    path.write_text(TEXT)
    return str(path)


def data(text, tmp_path, **options):
    return TextLM(text, seq_len=16, batch_size=4, cache_dir=str(tmp_path / "cache"), **options)


def test_overfits_a_short_text(text, tmp_path):
    module = LlamaLM(**SIZES, lr=1e-2, warmup_steps=5)
    trainer = quiet_trainer(max_steps=60, val_check_interval=60, check_val_every_n_epoch=None, max_epochs=-1)
    trainer.fit(module, data(text, tmp_path))
    assert trainer.callback_metrics["val_loss"] < 1  # a unigram model reaches 3.0


@pytest.mark.parametrize("devices", [1, 2])
def test_resume_is_bitwise(text, tmp_path, devices):
    assert_resume_is_bitwise(
        lambda: LlamaLM(**SIZES, dropout=0.1, warmup_steps=2),
        lambda: data(text, tmp_path, num_workers=devices - 1),
        tmp_path, max_steps=6, max_epochs=-1, devices=devices, accumulate_grad_batches=2, every=4,
        val_check_interval=4, check_val_every_n_epoch=None, limit_val_batches=1, hooks=(VALIDATION_END,),
    )  # fmt: skip


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": 3, "max_steps": 4}])
def test_resume_is_bitwise_when_epochs_limit_the_run(text, tmp_path, limits):
    """The schedule then needs the length of the training loader, before Lightning restores its position."""
    assert_resume_is_bitwise(
        lambda: LlamaLM(**SIZES, dropout=0.1, warmup_steps=2),
        lambda: TextLM(text, seq_len=64, batch_size=4, cache_dir=str(tmp_path / "cache")),
        tmp_path, **limits, accumulate_grad_batches=3, every=4, limit_val_batches=1, hooks=(BATCH_END, EPOCH_END),
    )  # fmt: skip


def test_perplexities_are_exact_over_the_split(text, tmp_path):
    module, corpus = LlamaLM(**SIZES), data(text, tmp_path)
    trainer = quiet_trainer()
    trainer.validate(module, corpus, verbose=False)
    tokens = torch.from_numpy(corpus.tokens("val").astype("int64"))
    nll, windows = 0.0, range(0, len(tokens) - 1, 16)
    for start in windows:
        window = tokens[start : start + 17]
        logits, _ = module.model(window[None, :-1])
        nll += torch.nn.functional.cross_entropy(logits[0], window[1:], reduction="sum").item()
    loss, stats = nll / (len(tokens) - 1), corpus.stats("val")
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(loss, rel=1e-5)
    assert trainer.callback_metrics["val_ppl"].item() == pytest.approx(math.exp(loss), rel=1e-4)
    expected = math.exp(nll / stats["words"])
    assert trainer.callback_metrics["val_word_ppl"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_compile_option_trains_to_the_same_weights(text, tmp_path):
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = LlamaLM(**SIZES, compile=compile)
        quiet_trainer(max_steps=3, max_epochs=-1, limit_val_batches=0).fit(module, data(text, tmp_path))
        losses.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.allclose(losses[0][name], losses[1][name], atol=1e-5) for name in losses[0])


@pytest.fixture
def loader():
    """Plain (tokens, targets) pairs, 3 batches of 4."""
    ids = torch.randint(257, (12, 17), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised while torch traces
def test_fit_of_a_torch_compiled_module_trains_to_the_same_weights(loader):
    weights = []
    for wrap in (lambda module: module, torch.compile):
        torch.manual_seed(0)
        module = LlamaLM(**SIZES)
        quiet_trainer(max_steps=3, limit_val_batches=0).fit(wrap(module), loader)
        weights.append(module.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-5)


def test_torch_export_of_network_and_module_gives_the_same_logits():
    module, tokens = LlamaLM(**SIZES).eval(), torch.randint(257, (2, 16))
    logits = module(tokens)
    torch.testing.assert_close(torch.export.export(module.model, (tokens,)).module()(tokens)[0], logits)
    torch.testing.assert_close(torch.export.export(module, (tokens,)).module()(tokens), logits)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_example_of_the_card_runs(tmp_path):
    torch.manual_seed(1)  # with seed 0 one of the 68 windows is learned later than the others
    results = run_example(Path(__file__).parents[2] / "zoo" / "llama" / "README.md", tmp_path)
    assert results["text"] == "the quick brown fox jumps ove"
    assert results["loaded"].tokenizer.fingerprint == results["tokenizer"].fingerprint
    rows = [row for batch in results["scores"] for row in batch]
    assert len(rows) == 68
    assert max(row["ppl"] for row in rows) < 1.5


def test_flops_are_six_per_parameter_plus_attention():
    module = LlamaLM(**SIZES)
    parameters = sum(p.numel() for p in module.model.parameters())
    batch = (torch.zeros(4, 16, dtype=torch.long),) * 2
    assert module.count(batch) == 64
    assert module.flops_per_item(batch) == 6 * parameters + 12 * 2 * 32 * 16


def test_windows_longer_than_the_context_are_refused(text, tmp_path):
    module = LlamaLM(**{**SIZES, "max_seq_len": 8})
    with pytest.raises(UserError, match=r"set --data\.seq_len to at most 8"):
        module.check_data(data(text, tmp_path))
    with pytest.raises(UserError, match="16 tokens are more than the model's context of 8"):
        quiet_trainer().validate(module, data(text, tmp_path))


# ---- with llama2.c's stories260K


@pytest.fixture
def stories(zoo_data):
    return zoo_data / "stories260K"


def test_generate_command_prints_llama2c_story_byte_for_byte(stories, capfd):
    argv = ["generate", f"--ckpt_path={stories / 'stories260K.bin'}", "--temperature=0", "--max_new_tokens=200"]
    assert main(argv) == 0
    story = capfd.readouterr().out
    assert hashlib.sha256(story.encode()).hexdigest() == STORY, story


def test_fit_starts_from_llama2c_weights(stories, text, tmp_path, capfd):
    out = tmp_path / "run"
    config = Path(__file__).parents[2] / "configs" / "tiny" / "llama.yaml"
    argv = [
        "fit", f"--config={config}", f"--model.weights={stories / 'stories260K.bin'}", f"--data_dir={text}",
        f"--data.tokenizer={stories / 'tok512.bin'}", f"--output_dir={out}", "--data.seq_len=16", "--data.batch_size=4",
        "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--samples.max_new_tokens=0", "--model.dropout=0.1",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
        f"--data.cache_dir={tmp_path / 'cache'}", "--trainer.log_every_n_steps=1",
    ]  # fmt: skip
    assert main(argv) == 0, capfd.readouterr().err
    tuned = load_checkpoint(out / "last.ckpt")
    assert tuned.config == LlamaConfig(
        vocab_size=512, dim=64, hidden_dim=172, n_layers=5, n_heads=8, n_kv_heads=4, max_seq_len=512, dropout=0.1
    )
    assert not torch.equal(tuned.norm.weight, load_checkpoint(stories / "stories260K.bin").norm.weight)
    capfd.readouterr()
    assert main(["generate", f"--ckpt_path={out / 'last.ckpt'}", "--temperature=0", "--max_new_tokens=8"]) == 0
    assert capfd.readouterr().out.startswith("Once upon a time")


def test_tokenizer_of_another_vocabulary_size_is_refused(stories, capsys):
    argv = ["generate", f"--ckpt_path={stories / 'stories260K.bin'}", "--data.tokenizer=bytes"]
    assert main(argv) == 1
    assert "the tokenizer has 257 tokens, but the model in" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_gpu(text, tmp_path, precision):
    from zoo.callbacks import Checkpoint, MixedPrecision

    options = {"max_steps": 20, "max_epochs": -1, "gradient_clip_val": 1.0, "limit_val_batches": 0}
    module = LlamaLM(**SIZES, lr=1e-2, warmup_steps=2)
    callbacks = [MixedPrecision(precision), Checkpoint(str(tmp_path / "run"))]
    trainer = quiet_trainer(accelerator="gpu", devices=1, callbacks=callbacks, enable_checkpointing=True, **options)
    trainer.fit(module, data(text, tmp_path))
    assert trainer.callback_metrics["train_loss"] < 5
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert ("MixedPrecision" in saved) == (precision == "fp16")
