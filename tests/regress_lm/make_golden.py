"""Writes golden_numbers.json and golden_model.json: tokens of upstream's tokenizers and outputs of its model.

    python tests/regress_lm/make_golden.py --upstream PATH     # a checkout of google-deepmind/regress-lm (f85730d)

The tests cannot import upstream, so its outputs are stored. `draw` generates the weights from a parameter's name and
shape, for this script and the tests: the files contain no weights.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TEXTS = ["X1: 12", "lr=0.003, layers=7", "-", "{'a': [1, 2.5e-3]}"]
TABLES = ("pe", "inv_freq")  # of positions: computed, not random


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden model's fp32 weights for a parameter's name and shape."""
    noise = np.random.default_rng([3, *name.encode()]).normal(size=shape)
    if len(shape) == 2:
        noise /= (5 if "generator" in name else 1) * shape[1] ** 0.5  # so that losses have a realistic size
    elif "norm" in name and name.endswith("weight"):
        noise = 1 + 0.2 * noise
    return noise.astype(np.float32)


def values() -> np.ndarray:
    """Numbers of all magnitudes, some outside the range, decimals and powers of ten."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=150) * 10.0 ** rng.uniform(-12, 13, 150)
    decimals = np.round(rng.uniform(-100, 100, 100), 2)
    named = [0.57, 0.0, -0.0, -1e-20, 12345.0, 12355.0, 1.0, 1e-9, 5e-11, 9.9996e9, -1e13, 5e-8, 5.1e-8, 1.1e-7]
    return np.concatenate([wide, decimals, named, 10.0 ** np.arange(-10, 11)])


def numbers(upstream) -> dict:
    makers = {
        "ieee": (upstream.IEEEFloatTokenizer(), values()),
        "ieee 10 2 6": (upstream.IEEEFloatTokenizer(10, 2, 6), values()),
        "ieee 3 2 5": (upstream.IEEEFloatTokenizer(3, 2, 5), values()),
        "p10": (upstream.P10Tokenizer(), values()),
        "p10 3 4": (upstream.P10Tokenizer(3, 4), values()),
        "normalized": (upstream.NormalizedTokenizer(), np.abs(values()) % 1),
        "normalized 16 2": (upstream.NormalizedTokenizer(16, 2), np.abs(values()) % 1),
    }
    return {
        name: {"values": x.tolist(), "tokens": ["".join(tokenizer.to_tokens(float(v))) for v in x]}
        for name, (tokenizer, x) in makers.items()
    }


def model(tokenizers, vocabs, pytorch_model, core, torch, objectives: int, encoder_heads: int) -> dict:
    tokenizer = tokenizers.IEEEFloatTokenizer()
    if objectives > 1:
        tokenizer = tokenizers.AppendPadTokenizer(tokenizers.AddSpecialValues(tokenizers.P10Tokenizer(3, 4)))
    settings = {
        "encoder_vocab": vocabs.CharacterVocab(),
        "decoder_vocab": vocabs.DecoderVocab(tokenizer),
        "max_input_len": 24,
        "max_num_objs": objectives,
        "architecture_kwargs": {
            "d_model": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "additional_encoder_kwargs": {"nhead": encoder_heads},
        },
        "num_workers": 0,
    }
    plain = pytorch_model.PyTorchModelConfig(**settings).make_model().eval()
    with_z = pytorch_model.PyTorchModelConfig(**settings, z_loss_coef=0.01).make_model().eval()
    state = plain.state_dict()
    drawn = {name for name in state if not name.endswith(TABLES)}
    prefix = "encoder_decoder."
    state = {
        name: torch.from_numpy(draw(name.removeprefix(prefix), tuple(tensor.shape))) if name in drawn else tensor
        for name, tensor in state.items()
    }
    plain.load_state_dict(state)
    with_z.load_state_dict(state)
    y = [12.0, -0.0031, 7.0, 2.5e3]
    y = y if objectives == 1 else [[v, special] for v, special in zip(y, [1.0, np.nan, -np.inf, 20.0], strict=True)]
    batch = plain.converter.convert_examples([core.Example(x, t) for x, t in zip(TEXTS, y, strict=True)])
    with torch.no_grad():
        logits = plain.encoder_decoder(batch["encoder_input"], batch["decoder_input"])[:, :-1]
        losses = plain.compute_losses_and_metrics(batch)[0]
        return {
            "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
            "tokens": batch["encoder_input"].tolist(),
            "values": np.array(y, dtype=float).reshape(len(TEXTS), -1).tolist(),
            "numbers": batch["decoder_target"][:, :-1].tolist(),
            "logits": logits.double().numpy().round(7).tolist(),
            "losses": losses.tolist(),
            "z_losses": (with_z.compute_losses_and_metrics(batch)[0] - losses).tolist(),
            "log_probs": plain.log_prob(batch).tolist(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, required=True, help="the checkout")
    sys.path.insert(0, str(parser.parse_args().upstream))
    import torch
    from regress_lm import core, tokenizers, vocabs
    from regress_lm.pytorch import model as pytorch_model

    kinds = ((1, 8), (2, 8), (1, 2))  # objectives, heads of the encoder
    models = [model(tokenizers, vocabs, pytorch_model, core, torch, *kind) for kind in kinds]
    for name, content in (("numbers", numbers(tokenizers)), ("model", models)):
        (HERE / f"golden_{name}.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
