"""Every model in Python: validate before fit, invalid arguments and batches, old names of arguments, export."""

import pickle

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from zoo.errors import UserError
from zoo.registry import MODELS, load_class
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import collate, text_rows

TOKENIZER = load_tokenizer("bytes")
TEXTS = [f"a={i} b={i * 2 % 7} {'x' * (i % 5)}" for i in range(12)]
LLAMA = {"dim": 8, "n_layers": 1, "n_heads": 2, "max_seq_len": 64}
MODEL_ARGUMENTS = {
    "LlamaLM": LLAMA,
    "LlamaClassifier": LLAMA | {"label_names": ["bad", "good"]},
    "RegressLM": {"dim": 8, "n_heads": 2, "max_input_len": 64, "num_samples": 2, "val_samples": 2},
    "MiniRLM": {"dim": 8, "hidden_dim": 8},
    "ICRTransformer": {"D": 3, "K": 4, "M": 8, "d_model": 8, "d_mlp": 8, "n_heads": 2, "n_layers": 1},
    "RevDEQLM": {"hidden_size": 8, "num_heads": 2, "intermediate_size": 8, "max_position_embeddings": 64},
}


def model(name: str, **changes):
    size = {} if name == "ICRTransformer" else {"vocab_size": 257}
    arguments = MODEL_ARGUMENTS.get(name, MODEL_ARGUMENTS["LlamaClassifier"])
    return load_class(name)(**size | arguments | changes)


def rows(targets=None, features=None):
    return text_rows(TEXTS, np.arange(len(TEXTS)) % 2 if targets is None else targets, TOKENIZER, features)


def loader(name: str, targets=None) -> DataLoader:
    if name in ("LlamaLM", "RevDEQLM"):
        tokens = torch.arange(120).view(8, 15)
        return DataLoader(TensorDataset(tokens, tokens + 1), batch_size=4)
    if name == "ICRTransformer":
        return DataLoader(TensorDataset(torch.randn(8, 4, 3), torch.randn(8, 4)), batch_size=4)
    return DataLoader(rows(targets), batch_size=4, collate_fn=collate)


def trainer() -> Trainer:
    return Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(MODEL_ARGUMENTS))
def test_fit_after_validate(name):
    module = model(name)
    before = trainer().validate(module, loader(name), verbose=False)[0]
    trainer().fit(module, loader(name), loader(name))
    trainer().test(module, loader(name), verbose=False)
    trainer().fit(module, loader(name), loader(name))
    assert before.keys() <= trainer().validate(module, loader(name), verbose=False)[0].keys()


def test_every_trainable_model_is_tested():
    assert set(MODEL_ARGUMENTS) == set(MODELS) - {"LlamaZeroShot"}


# ---- arguments


@pytest.mark.parametrize("name", [*sorted({*MODEL_ARGUMENTS} - {"ICRTransformer"}), "LlamaZeroShot"])
def test_a_vocabulary_of_zero_tokens_is_refused(name):
    with pytest.raises(UserError, match="vocab_size must be at least 1, not 0"):
        model(name, vocab_size=0)


INVALID = [
    ("ICRTransformer", {"grad_clip": -1.0}, "grad_clip must be positive, or null for no clipping, not -1.0"),
    ("ICRTransformer", {"grad_clip": 0}, "grad_clip must be positive"),
    ("ICRTransformer", {"warmup_steps": "many"}, "warmup_steps must be at least 0, not 'many'"),
    ("ICRTransformer", {"d_model": None}, "d_model must be a whole number, at least 1, not None"),
    ("ICRTransformer", {"K": None}, "K must be a whole number, at least 2"),
    ("LlamaLM", {"dim": None}, "dim must be a whole number, at least 1, not None"),
    ("LlamaLM", {"dim": 8.0}, "dim must be a whole number, at least 1, not 8.0"),
    ("LlamaLM", {"dropout": None}, r"dropout must be in \[0, 1\), not None"),
    ("LlamaLM", {"lr": None}, "lr must be a finite number of at least 0, not None"),
    ("LlamaLM", {"lr": "1e-3"}, "lr must be a finite number of at least 0, not '1e-3'"),
    ("LlamaLM", {"warmup_steps": None}, "warmup_steps must be at least 0, not None"),
    ("RevDEQLM", {"hidden_size": None}, "hidden_size must be a whole number"),
    ("RevDEQLM", {"beta": None}, "beta must be in"),
    ("RegressLM", {"point": "middle"}, "point must be one of median, mean, mode, not 'middle'"),
    ("RegressLM", {"num_samples": 0}, "num_samples must be at least 1, not 0"),
    ("RegressLM", {"val_samples": -1}, "val_samples must be at least 0, not -1"),
    ("RegressLM", {"temperature": -1.0}, "temperature must be a finite number of at least 0, not -1.0"),
    ("RegressLM", {"z_loss": -1.0}, "z_loss must be a finite number of at least 0"),
    ("RegressLM", {"lora_rank": -1}, "lora_rank must be at least 0"),
    ("RegressLM", {"dim": None}, "dim must be a whole number"),
    ("RegressLM", {"number_len": 3}, "number_len cannot be given, because it is computed from number_format"),
    ("RegressLM", {"number_vocab_size": 3}, "number_vocab_size cannot be given"),
    ("MiniRLM", {"outputs": 2}, "outputs cannot be given, because it is computed from n_classes or n_objectives"),
    ("MiniRLM", {"n_features": -1}, "n_features must be at least 0, not -1"),
    ("MiniRLM", {"readout_dim": -1}, "readout_dim must be at least 0, not -1"),
    ("MiniRLM", {"huber_delta": 0.0}, "huber_delta must be positive"),
    ("MiniRLM", {"n_objectives": 0}, "n_objectives must be at least 1"),
    ("LlamaClassifier", {"lm_weight": -1.0}, "lm_weight must be a finite number of at least 0"),
    ("LlamaClassifier", {"bow_C": 0.0}, "bow_C must be above 0, not 0.0"),
    ("LlamaClassifier", {"lora_rank": 0}, "lora_rank must be at least 1"),
    ("LlamaClassifier", {"label_names": "ab"}, "label_names must be a list of at least two different names"),
    ("LlamaClassifier", {"label_names": ["a"]}, "label_names must be a list of at least two different names"),
    ("LlamaClassifier", {"label_names": ["a", "a"]}, "label_names must be a list of at least two different names"),
    ("LlamaClassifier", {"label_names": ["a", ""]}, "label_names must be a list of at least two different names"),
]


@pytest.mark.parametrize(("name", "changes", "words"), INVALID)
def test_an_argument_outside_its_range_is_refused(name, changes, words):
    with pytest.raises(UserError, match=words):
        model(name, **changes)


@pytest.mark.parametrize(
    ("name", "old", "words"),
    [
        ("MiniRLM", "targets", "the argument targets of MiniRLM is now called target_scale"),
        ("RegressLM", "numbers", "the argument numbers of RegressLM is now called number_format"),
        ("LlamaClassifier", "bag", "the argument bag of LlamaClassifier is now called bow_features"),
        ("LlamaClassifier", "normalize", "normalize of LlamaClassifier no longer exists: it is an option of LlamaZero"),
    ],
)
def test_an_old_name_of_an_argument_is_refused_with_the_new_one(name, old, words, tmp_path):
    with pytest.raises(UserError, match=words):
        model(name, **{old: "x"})
    # The same in a checkpoint from before the change.
    run, module = trainer(), model(name)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    checkpoint["hyper_parameters"][old] = "x"
    del checkpoint["zoo_digest"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match=words):
        type(module).load_from_checkpoint(tmp_path / "old.ckpt")


# ---- batches

NAN = [0.0, 1.0, float("nan"), *[0.0] * 9]
THREE = [0, 1, 0, 1, 2, *[0] * 7]


@pytest.mark.parametrize(
    ("name", "targets", "changes", "words"),
    [
        ("MiniRLM", NAN, {}, "row 2: a target is nan, but training and evaluation need a finite number"),
        ("RegressLM", NAN, {}, "row 2: a target is nan, but training and evaluation need a finite number"),
        ("MiniRLM", THREE, {"n_classes": 2}, r"row 4: a target is 2, but n_classes 2 means one of 0 \.\.\. 1"),
        ("LlamaClassifier", NAN, {}, r"row 2: a target is nan, but label_names of length 2 means one of 0 \.\.\. 1"),
        ("LlamaClassifier", THREE, {}, r"row 4: a target is 2, but label_names of length 2 means one of 0 \.\.\. 1"),
        ("LlamaClassifier", THREE, {"bow_features": "tfidf"}, "row 4: a target is 2, but label_names"),
    ],
)
def test_a_target_that_cannot_be_learned_names_its_row(name, targets, changes, words):
    good, bad = loader(name), loader(name, targets)
    for run in (
        lambda: trainer().fit(model(name, **changes), bad, good),
        lambda: trainer().fit(model(name, **changes), good, bad),
        lambda: trainer().validate(model(name, **changes), bad),
        lambda: trainer().test(model(name, **changes), bad),
    ):
        with pytest.raises(UserError, match=words):
            run()
    assert trainer().predict(model(name, **changes), loader(name, [float("nan")] * 12))


def test_mlp_without_features_gets_the_same_message_everywhere():
    module = model("MiniRLM", encoder="mlp", n_features=2)
    words = "the data gives 0 numbers for a text, but the model has n_features 2"
    for run in (
        lambda: trainer().fit(module, loader("MiniRLM"), loader("MiniRLM")),
        lambda: trainer().predict(module, loader("MiniRLM")),
        lambda: module(collate(rows())),
    ):
        with pytest.raises(UserError, match=words):
            run()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(rows())


def test_mini_rlm_trains_on_a_stream_of_rows_with_scales_fitted_by_hand():
    stream = DataLoader(Stream(), batch_size=4, collate_fn=collate)
    with pytest.raises(TypeError, match=r"with other data call fit_scales\(targets\) before training"):
        trainer().fit(model("MiniRLM"), stream, stream)
    module = model("MiniRLM")
    module.fit_scales(np.array([[1.0], [2.0], [9.0]]))
    trainer().fit(module, stream, stream)
    assert module.target_scale.centre.item() == 2.0
    trainer().fit(model("MiniRLM", target_scale="raw"), stream, stream)


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in sorted(MODEL_ARGUMENTS)), ("RegressLM", {"lora_rank": 2})]
)
def test_every_module_can_be_pickled(name, changes):
    module = model(name, **changes)
    trainer().fit(module, loader(name), loader(name))
    again = pickle.loads(pickle.dumps(module))
    for (own, tensor), (other, copied) in zip(module.state_dict().items(), again.state_dict().items(), strict=True):
        assert own == other
        assert torch.equal(tensor, copied)


# ---- export, as the cards state it


def exported(module, *inputs):
    return torch.export.export(module, inputs).module()(*inputs)


def test_modules_that_export_with_a_batch():
    for name, changes in (
        ("LlamaClassifier", {}), ("MiniRLM", {"encoder": "transformer", "n_heads": 2}), ("ICRTransformer", {})
    ):  # fmt: skip
        module, batch = model(name, **changes).eval(), next(iter(loader(name)))
        torch.testing.assert_close(exported(module, batch), module(batch))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.encoder.lstm:UserWarning")  # by torch, of its LSTM
def test_networks_of_modules_that_do_not_export():
    batch = next(iter(loader("RegressLM")))
    module = model("RegressLM").eval()
    inputs = (batch.tokens, module.with_number_tokens(batch).numbers, batch.padding_mask)
    torch.testing.assert_close(exported(module.model, *inputs), module.model(*inputs))
    module = model("MiniRLM").eval()  # an LSTM: rows without padding
    torch.testing.assert_close(exported(module.model, batch.tokens), module.model(batch.tokens))
    module = model("LlamaClassifier", bow_features="tfidf").eval()
    torch.testing.assert_close(exported(module.model, batch.tokens), module.model(batch.tokens))
