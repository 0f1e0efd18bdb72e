"""Every model in every precision on a CPU: the validation loss after training, and errors of losses and gradients.

    python benchmarks/precisions.py              # a few minutes on one core
    python benchmarks/precisions.py --only chunks

`training`: from the same weights and batches, 20 optimizer steps in each precision; `difference` is that of the
validation loss to 64-true, relative. 16-true does not train: there the loss is that of the initial weights, compared
with their loss in fp64. `chunks`: loss and gradients of one batch under autocast, with the chunk size of a CUDA GPU and
a loss scale of 65536, compared with fp64; the error of the gradient is |g - g64| / |g64| over all weights. Rows are
written to precisions.json.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments, store  # noqa: E402
from zoo.callbacks import MixedPrecision  # noqa: E402
from zoo.icr import ICRTransformer  # noqa: E402
from zoo.icr.task import Prompts  # noqa: E402
from zoo.layers import linear_nll as chunked  # noqa: E402
from zoo.llama import LlamaClassifier, LlamaLM  # noqa: E402
from zoo.mini_rlm import MiniRLM  # noqa: E402
from zoo.regress_lm.module import RegressLMModule  # noqa: E402
from zoo.revdeq import RevDEQLM  # noqa: E402
from zoo.tokenizers import load_tokenizer  # noqa: E402
from zoo.training.batches import collate, text_rows  # noqa: E402

STEPS, LR = 20, 1e-3
VOCABULARY = 257
LLAMA = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "lr": LR}
MODELS: dict[str, Any] = {
    "LlamaLM": lambda: LlamaLM(**LLAMA),
    "LlamaClassifier": lambda: LlamaClassifier(["odd", "even"], head_dropout=0.0, **LLAMA),
    "RegressLM": lambda: RegressLMModule(
        vocab_size=VOCABULARY, dim=32, n_heads=2, max_input_len=64, val_samples=0, lr=LR
    ),
    "MiniRLM, LSTM": lambda: MiniRLM(vocab_size=VOCABULARY, dim=32, hidden_dim=32, lr=LR),
    "MiniRLM, transformer": lambda: MiniRLM("transformer", vocab_size=VOCABULARY, dim=32, n_heads=2, lr=LR),
    "MiniRLM, MLP": lambda: MiniRLM("mlp", n_features=2, dim=32, lr=LR),
    "ICRTransformer": lambda: ICRTransformer(D=4, K=8, M=8, d_model=32, d_mlp=64, n_heads=2, n_layers=2, lr=LR),
    "RevDEQLM": lambda: RevDEQLM(
        VOCABULARY, hidden_size=32, num_heads=2, intermediate_size=64, max_position_embeddings=64, lr=LR
    ),
}  # fmt: skip
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")


def loader(name: str, rows: int, batch_size: int, length: int = 32) -> DataLoader:
    """Batches of drawn data: tokens from a skewed distribution, prompts, or texts with numbers."""
    generator = torch.Generator().manual_seed(1)
    if name in ("LlamaLM", "RevDEQLM"):
        uniform = torch.rand(rows, length + 1, generator=generator, dtype=torch.float64)
        tokens = (VOCABULARY * uniform**4).long()  # a few tokens are frequent, as in text
        return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=batch_size)
    if name == "ICRTransformer":
        x = torch.randn(rows, 8, 4, generator=generator)
        w = torch.randn(rows, 1, 4, generator=generator)
        return DataLoader(TensorDataset(x, (x * w).sum(-1)), batch_size=batch_size)
    numbers = torch.randint(1000, (rows, 2), generator=generator).tolist()
    classes = name == "LlamaClassifier"
    targets = [a % 2 if classes else 1_234_567 + a * b for a, b in numbers]
    features = numbers if name == "MiniRLM, MLP" else None
    texts = text_rows([f"a={a} b={b}" for a, b in numbers], targets, load_tokenizer("bytes"), features)
    return DataLoader(texts, batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


def trainer(precision: str) -> Trainer:
    """A Trainer of a few steps. Lightning refuses fp16 autocast on a CPU, where the callback sets it."""
    is_fp16 = precision == "16-mixed"
    return Trainer(
        max_steps=STEPS, accelerator="cpu", precision=None if is_fp16 else precision,  # type: ignore[arg-type]
        callbacks=[MixedPrecision("fp16", devices=("cpu",))] if is_fp16 else [], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def validation_loss(name: str, precision: str, train: bool) -> float:
    """The loss of the initial weights, or that after training."""
    torch.manual_seed(0)
    module = MODELS[name]()
    if train:
        trainer(precision).fit(module, loader(name, STEPS * 8, 8))
    elif hasattr(module, "fit_scales"):  # training would do so
        batches = list(loader(name, STEPS * 8, 8))
        features = torch.cat([b.features for b in batches]).numpy() if batches[0].features is not None else None
        module.fit_scales(torch.cat([b.targets for b in batches]).numpy(), features)
    [values] = trainer(precision).validate(module, loader(name, 64, 32), verbose=False)
    return values["val_loss"]


def training() -> Iterator[dict[str, Any]]:
    """A row per model: the validation loss in fp64 and the relative differences of the other precisions."""
    for name in MODELS:
        exact = {train: validation_loss(name, "64-true", train) for train in (True, False)}
        row: dict[str, Any] = {"benchmark": f"training, {name}", "model": name, "steps": STEPS, "loss": exact[True]}
        for precision in PRECISIONS:
            train = precision != "16-true"
            row[precision] = abs(validation_loss(name, precision, train) / exact[train] - 1)
        print(row, flush=True)
        yield row | facts()


def loss_of(name: str, module: Any, batch: Any) -> Tensor:
    """The training loss of a batch."""
    if name in ("LlamaLM", "RevDEQLM"):
        return module.training_loss(*batch)
    if name == "LlamaClassifier":
        logits = module.classify(module.model.hidden(batch.tokens), batch.padding_mask, None)
        return torch.nn.functional.cross_entropy(logits, batch.targets[:, 0].long())
    if name == "ICRTransformer":
        return module.losses(Prompts(*batch))
    return module.losses(batch).mean()


def gradient(loss: Tensor, module: Any, scale: float) -> Tensor:
    """The gradients of all weights as one vector, in fp64."""
    weights = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(scale * loss, weights, materialize_grads=True)
    return torch.cat([g.double().flatten() for g in gradients]) / scale


def chunks() -> Iterator[dict[str, Any]]:
    """A row per model: errors of loss and gradient in fp16 and bf16."""
    chunked.CHUNK_BYTES["cpu"] = chunked.CHUNK_BYTES["cuda"]
    for name in MODELS:
        is_language_model = name in ("LlamaLM", "RevDEQLM")
        [batch] = loader(name, *((4096, 4096) if is_language_model else (256, 256)))  # 4096 x 32 = 131,072 tokens
        torch.manual_seed(0)
        module = MODELS[name]()
        if hasattr(module, "fit_scales"):
            module.fit_scales(batch.targets.numpy(), None if batch.features is None else batch.features.numpy())
        row = {"benchmark": f"chunks, {name}", "model": name}
        if is_language_model:
            row["tokens"] = batch[0].numel()
        row |= errors(lambda: loss_of(name, module, batch), module)  # noqa: B023
        print(row, flush=True)
        yield row | facts()
    # The output layer alone, with a larger vocabulary.
    for vocabulary, n in ((VOCABULARY, 131_072), (32_000, 4096)):
        row = {
            "benchmark": f"chunks, output layer of {vocabulary} words",
            "model": f"output layer, {vocabulary:,} words",
        }
        layer = torch.nn.Linear(32, vocabulary, bias=False)
        hidden = torch.randn(n, 32) + 2
        targets = (vocabulary * torch.rand(n, dtype=torch.float64) ** 4).long()
        row |= {"tokens": n} | errors(
            lambda: chunked.linear_nll(hidden.to(layer.weight.dtype), layer.weight, targets),  # noqa: B023
            layer,
        )
        print(row, flush=True)
        yield row | facts()


def errors(loss: Any, module: Any) -> dict[str, float]:
    """Errors of loss and gradient in fp16 and bf16 relative to fp64."""
    low = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        with torch.autocast("cpu", dtype):
            value = loss()
        low[name] = value.item(), gradient(value, module, 65536.0 if name == "fp16" else 1.0)
    module.double()
    exact = loss()
    exact_gradient = gradient(exact, module, 1.0)
    module.float()
    result = {}
    for name, (value, vector) in low.items():
        result[f"{name} loss"] = abs(value / exact.item() - 1)
        result[f"{name} gradient"] = ((vector - exact_gradient).norm() / exact_gradient.norm()).item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("training", "chunks"))
    args = parse_arguments(parser, "precisions.json")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for kind, measure in (("training", training), ("chunks", chunks)):
        if args.only in (None, kind):
            for row in measure():
                store([row], args.output)


if __name__ == "__main__":
    main()
