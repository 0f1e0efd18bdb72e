"""Densities of two objectives given a text, next to google-deepmind/regress-lm at equal steps: energy distances.

    python benchmarks/densities.py --upstream PATH     # a checkout; it needs transformers, sentencepiece, ordered-set

A text names a shape, its centre and its scale (`zoo.regress_lm.shapes`); every training row is a new random point. Both
models have the same size, number tokens, batches and steps. Upstream is trained as its notebook on densities trains:
Muon with AdamW at 2e-3, constant for a tenth of the steps, then falling with the root of the step. Ours is trained in
the same way, and by `fine_tune`. The energy distance to true samples is averaged over eight texts whose combination of
shape, centre and scale is in no training row. Rows are written to regress_lm_densities.json.
"""

import argparse
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.regress_lm import Example, RegressLM  # noqa: E402
from zoo.regress_lm.shapes import SHAPES, Points, Shape, draw_shapes, energy_distance  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.training.batches import collate  # noqa: E402

TESTED = [Shape(name, *at) for name in SHAPES for at in ((-1.1, 0.7, 0.5), (0.9, -1.3, 1.0))]
Row = dict[str, Any]


def training_rows(n: int, seed: int) -> tuple[list[str], Points]:
    """n texts, and one point (n, 2) of each."""
    random = np.random.default_rng([seed, 1])
    shapes = [shape for shape in draw_shapes(n + n // 100, random) if shape not in TESTED][:n]
    return [shape.text for shape in shapes], np.concatenate([shape.draw(1, random) for shape in shapes])


def true_samples(n: int, seed: int) -> list[Points]:
    random = np.random.default_rng([seed, 2])
    return [shape.draw(n, random) for shape in TESTED]


def distances(samples: list[Points], args: argparse.Namespace) -> Row:
    """Mean energy distance to true samples over the tested texts, and the largest."""
    each = [energy_distance(a, b) for a, b in zip(samples, true_samples(args.samples, 0), strict=True)]
    return {"energy_distance": float(np.mean(each)), "largest": float(np.max(each))}


def train(model: torch.nn.Module, losses: Any, batches: list[Any], args: argparse.Namespace) -> None:
    """Upstream's notebook recipe."""
    from regress_lm.pytorch.optimizers import muon_adamw

    optimizer = muon_adamw(list(model.named_parameters()), lr=2e-3, weight_decay=0.0)
    constant = args.steps // 10
    model.train()
    for step, batch in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (constant / step) ** 0.5)
        optimizer.zero_grad(set_to_none=True)
        losses(batch).mean().backward()
        optimizer.step()
    model.eval()


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ours(seed: int, args: argparse.Namespace) -> RegressLM:
    return RegressLM.from_scratch(
        64, tokenizer="characters", seed=seed, n_objectives=2, dim=args.dim, n_encoder_layers=args.layers,
        n_decoder_layers=args.layers,
    )  # fmt: skip


def sampled(model: RegressLM, args: argparse.Namespace, seed: int) -> list[Points]:
    return model.sample([shape.text for shape in TESTED], args.samples, seed=seed)


def fine_tuned(seed: int, args: argparse.Namespace) -> Row:
    texts, points = training_rows(args.steps * args.batch_size, seed)
    examples = [Example(text, point) for text, point in zip(texts, points, strict=True)]
    held_out = [Example(text, point) for text, point in zip(*training_rows(256, seed + 1000), strict=True)]
    model = ours(seed, args)
    start = cpu_seconds()
    model.fine_tune(examples, held_out, seed=seed, max_epochs=1, batch_size=args.batch_size, progress=False)
    trained = cpu_seconds()
    return distances(sampled(model, args, seed), args) | {
        "train_cpu_s": round(trained - start), "sample_cpu_s": round(cpu_seconds() - trained, 1),
    }  # fmt: skip


def same_recipe(seed: int, args: argparse.Namespace) -> Row:
    texts, points = training_rows(args.steps * args.batch_size, seed)
    model = ours(seed, args)
    rows = model.rows([Example(text, point) for text, point in zip(texts, points, strict=True)])
    batches = [rows[i : i + args.batch_size] for i in range(0, len(rows), args.batch_size)]
    start = cpu_seconds()
    train(model, lambda batch: model.losses(model.with_number_tokens(collate(batch))), batches, args)
    trained = cpu_seconds()
    return distances(sampled(model, args, seed), args) | {
        "train_cpu_s": round(trained - start), "sample_cpu_s": round(cpu_seconds() - trained, 1),
    }  # fmt: skip


def upstream(seed: int, args: argparse.Namespace) -> Row:
    from regress_lm import core, vocabs
    from regress_lm.rlm import RegressLM as UpstreamRLM

    torch.manual_seed(seed)
    rlm = UpstreamRLM.from_scratch(
        d_model=args.dim, num_encoder_layers=args.layers, num_decoder_layers=args.layers, max_num_objs=2,
        max_input_len=40, encoder_vocab=vocabs.CharacterVocab(),
    )  # fmt: skip
    model: Any = rlm.model
    texts, points = training_rows(args.steps * args.batch_size, seed)
    rows = [core.Example(text, point.tolist()) for text, point in zip(texts, points, strict=True)]
    batches = [rows[i : i + args.batch_size] for i in range(0, len(rows), args.batch_size)]
    start = cpu_seconds()
    convert = model.converter.convert_examples
    train(model, lambda batch: model.compute_losses_and_metrics(convert(batch))[0], batches, args)
    trained = cpu_seconds()
    torch.manual_seed(seed)
    # One text at a time: its memory is copied once for every sample.
    samples = [rlm.sample([core.ExampleInput(shape.text)], args.samples)[0].astype(float) for shape in TESTED]
    return distances(samples, args) | {
        "train_cpu_s": round(trained - start), "sample_cpu_s": round(cpu_seconds() - trained, 1),
    }  # fmt: skip


def study(args: argparse.Namespace) -> Iterator[Row]:
    yield {"model": "other true samples", **distances(true_samples(args.samples, 1), args)}
    random = np.random.default_rng([0, 3])
    anywhere = [np.concatenate([s.draw(1, random) for s in draw_shapes(args.samples, random)]) for _ in TESTED]
    yield {"model": "points of all texts", **distances(anywhere, args)}
    models = {
        "RegressLM, fine_tune": fine_tuned,
        "RegressLM, upstream's recipe": same_recipe,
        "upstream": upstream,
    }
    for seed in args.seeds:
        for name, run in models.items():
            if name in args.models:
                yield {"model": name, "seed": seed, "steps": args.steps, **run(seed, args)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, required=True, help="the checkout")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    models = ["RegressLM, fine_tune", "RegressLM, upstream's recipe", "upstream"]
    parser.add_argument("--models", nargs="+", default=models, choices=models)
    args = parse_arguments(parser, "regress_lm_densities.json")
    sys.path.insert(0, str(args.upstream))
    about = facts() | {"threads": torch.get_num_threads()}
    rows = []
    for row in study(args):
        rows.append(row | about)
        print(dump_json({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        args.output.write_text(dump_json(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
