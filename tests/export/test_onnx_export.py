"""`zoo export --format onnx`: onnxruntime gives the model's outputs for other batch sizes, lengths and paddings."""

import json
import logging

import numpy as np
import pytest
import torch

from zoo.errors import UserError
from zoo.export import export_module
from zoo.export.onnx_files import _quiet_loggers
from zoo.export.onnx_graphs import MaskedLSTM, graphs_of
from zoo.icr import ICRTransformer
from zoo.llama import LlamaClassifier, LlamaLM
from zoo.mini_rlm import MiniRLM
from zoo.regress_lm import RegressLM
from zoo.revdeq import RevDEQLM
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import TextBatch

SIZES = {"vocab_size": 20, "dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32}
REVDEQ = {"vocab_size": 20, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
MINI = {"vocab_size": 20, "dim": 16, "hidden_dim": 8, "n_heads": 2, "max_seq_len": 64, "n_objectives": 2}


def mini(**settings):
    module = MiniRLM(**MINI | settings)
    if not settings.get("n_classes"):
        rng = np.random.default_rng(0)
        columns = settings.get("n_features", 0)
        module.fit_scales(rng.lognormal(5, 2, (50, 2)), rng.normal(3, 2, (50, columns)) if columns else None)
    return module


MODULES = {
    "LlamaLM": lambda: LlamaLM(**SIZES, n_kv_heads=1),
    "LlamaClassifier mean": lambda: LlamaClassifier(["a", "b"], pooling="mean", fit_scales=True, **SIZES),
    "LlamaClassifier last": lambda: LlamaClassifier(["a", "b", "c"], **SIZES),
    "RevDEQLM": lambda: RevDEQLM(**REVDEQ),
    "RevDEQLM post_norm": lambda: RevDEQLM(**REVDEQ, block="post_norm", positions="rotary", tie_embeddings=True),
    "ICRTransformer": lambda: ICRTransformer(D=3, K=5, d_model=16, d_mlp=16, n_heads=2, n_layers=2),
    "ICRTransformer postnorm": lambda: ICRTransformer(
        D=3, K=2, d_model=16, d_mlp=16, n_heads=2, n_layers=1, use_prenorm=False
    ),
    "MiniRLM lstm": lambda: mini(target_scale="asinh"),
    "MiniRLM lstm last": lambda: mini(pooling="last", target_scale="standard"),
    "MiniRLM lstm cls": lambda: mini(pooling="cls", n_layers=1),
    "MiniRLM transformer cls": lambda: mini(encoder="transformer", pooling="cls"),
    "MiniRLM transformer last, classes": lambda: mini(
        encoder="transformer", pooling="last", n_classes=3, n_objectives=1
    ),
    "MiniRLM mlp": lambda: mini(encoder="mlp", n_features=3),
    "RegressLM": lambda: RegressLM(vocab_size=20, dim=16, n_heads=2, max_input_len=32),
}
FAST = ("LlamaLM",)  # an export takes about five seconds


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODULES])
def test_onnxruntime_gives_the_models_outputs(name, tmp_path, caplog):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="writing ONNX needs the extra export")
    import onnxruntime

    module = MODULES[name]().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    if "fit_scales" in name:
        module.logit_scales.copy_(torch.tensor([0.5, 2.0]))
    export_module(module, "onnx", tmp_path / "out")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for graph in graphs_of(module):
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{graph.name}.onnx")
        for batch, length in ((1, 1), (1, 6), (5, 3), (4, 16)):
            inputs = graph.inputs(batch, min(length, graph.longest or length))
            feed = {name: tensor.numpy() for name, tensor in zip(graph.input_names, inputs, strict=True)}
            (actual,) = session.run([graph.output_name], feed)
            with torch.no_grad():
                expected = graph.module(*inputs)
            # Predictions in the targets' unit are fp32 numbers times a spread of hundreds: errors are relative to it.
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(torch.from_numpy(actual) / scale, expected / scale, rtol=0, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["zoo.model"] == type(module).__name__


def test_loggers_are_quiet_during_the_export_only(caplog):
    folding = logging.getLogger("onnxscript.optimizer._constant_folding")
    with _quiet_loggers():
        folding.warning("Skipping constant folding")
        folding.error("an error")
    folding.warning("after the export")
    assert caplog.messages == ["an error", "after the export"]


def text_batch(tokens, mask, features=None):
    batch = len(tokens)
    return TextBatch(
        tokens=tokens, padding_mask=mask, targets=torch.zeros(batch, 2, dtype=torch.float64), texts=[""] * batch,
        index=torch.arange(batch), features=features,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODULES if "MiniRLM" in name])
def test_graphs_of_mini_rlm_equal_its_estimates(name):
    """The graph's module, with its own LSTM and its own inverse scale, predicts what the LightningModule does."""
    module = MODULES[name]().eval()
    (graph,) = graphs_of(module)
    inputs = graph.inputs(4, 7)
    tokens, mask = inputs if len(inputs) == 2 else (torch.zeros(4, 1, dtype=torch.int64), None)
    batch = text_batch(tokens, mask, inputs[0] if mask is None else None)
    with torch.no_grad():
        expected = module.outputs(batch) if module.hparams["n_classes"] else module.estimate(batch)
        torch.testing.assert_close(graph.module(*inputs), expected, rtol=1e-5, atol=1e-5)


def test_masked_lstm_equals_packed_rows():
    torch.manual_seed(0)
    network = MiniRLM(**MINI).model.eval()
    x, lengths = torch.randn(4, 9, 16), torch.tensor([9, 1, 5, 8])
    mask = torch.arange(9) < lengths[:, None]
    with torch.no_grad():
        packed = network.encoder(x, mask, lengths)
        torch.testing.assert_close(MaskedLSTM(network.encoder.lstm)(x, mask, lengths), packed, rtol=0, atol=1e-6)


def test_graphs_of_regress_lm_are_its_two_steps():
    module = MODULES["RegressLM"]().eval()
    encoder, decoder = graphs_of(module)
    tokens, mask = encoder.inputs(3, 7)
    numbers = torch.randint(1, module.model.config.number_vocab_size, (3, module.model.config.number_len))
    shifted = torch.nn.functional.pad(numbers[:, :-1], (1, 0))
    with torch.no_grad():
        memory = encoder.module(tokens, mask)
        logits = decoder.module(shifted, memory, mask)
        torch.testing.assert_close(logits, module.model(tokens, numbers, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LlamaClassifier(["a", "b"], bow_features="tfidf", **SIZES), "with bow_features, which reads texts"),
        (lambda: RevDEQLM(**REVDEQ, block="post_norm", fixed_point_tol=1e-3), "with fixed_point_tol, whose number of"),
    ],
)
def test_settings_that_no_graph_can_express(make, sentence):
    with pytest.raises(UserError, match=f"{sentence}.*: use --format safetensors$"):
        graphs_of(make())


@pytest.mark.slow
def test_one_file_holds_the_tokenizer_and_the_settings(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="writing ONNX needs the extra export")
    import onnxruntime

    module = LlamaLM(tokenizer=load_tokenizer("bytes"), **{k: v for k, v in SIZES.items() if k != "vocab_size"}).eval()
    file = tmp_path / "model.onnx"
    assert list(export_module(module, "onnx", file)) == [str(file)]
    metadata = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["zoo.settings"])["dim"] == 16
    (tmp_path / "tokenizer.json").write_text(metadata["zoo.tokenizer"])
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("é", bos=False) == [195, 169]
    with pytest.raises(UserError, match=r"becomes several files, encoder\.onnx and decoder\.onnx: name a folder"):
        export_module(MODULES["RegressLM"](), "onnx", tmp_path / "regress.onnx")
