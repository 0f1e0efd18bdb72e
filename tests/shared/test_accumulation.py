"""Accumulation and several ranks: every optimizer step equals that of one batch of all its rows, for every model."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.shared.test_python_use import model as small_model
from zoo.callbacks import Checkpoint, MixedPrecision, NonFinite
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import IGNORED, collate, text_rows
from zoo.training.loss_weights import WeightedLosses

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

SIZES = [3, 1, 4, 2, 1, 5]  # rows of 6 batches; with accumulation of 4 the last window has 2
WINDOWS = [SIZES[:4], SIZES[4:]]
CASES = [
    ("LlamaLM", {}),
    ("RevDEQLM", {}),
    ("LlamaClassifier", {"head_dropout": 0.0}),
    ("LlamaClassifier", {"head_dropout": 0.0, "lm_weight": 0.7}),
    ("RegressLM", {"z_loss": 0.01}),
    ("RegressLM", {"n_objectives": 2}),
    ("MiniRLM", {"target_scale": "raw"}),
    ("MiniRLM", {"target_scale": "raw", "n_objectives": 2, "loss": "mse"}),
    ("MiniRLM", {"n_classes": 2}),
    ("ICRTransformer", {"grad_clip": None}),
]


def batches(name, sizes, n_objectives=1):
    """Batches of the given numbers of rows. All rows differ in length, or in the number of scored tokens."""
    total, generator = sum(SIZES), torch.Generator().manual_seed(0)
    if name == "ICRTransformer":
        columns = torch.randn(total, 4, 3, generator=generator), 3 * torch.randn(total, 4, generator=generator)
    elif name in ("LlamaLM", "RevDEQLM"):
        tokens = torch.randint(257, (total, 18), generator=generator)
        targets = tokens[:, 1:].clone()
        for i, row in enumerate(targets):
            row[: i + 1] = IGNORED
        columns = tokens[:, :-1], targets
    else:
        values = [[float((i + k) % 2) for k in range(n_objectives)] for i in range(total)]
        texts = [f"{'long ' * (i * i % 11)}{i}" for i in range(total)]
        rows = iter(text_rows(texts, values, load_tokenizer("bytes")))
        return [collate([next(rows) for _ in range(size)]) for size in sizes]
    return list(zip(*(column.split(list(sizes)) for column in columns), strict=True))


def module(name, **changes):
    torch.manual_seed(0)
    result = small_model(name, **changes)
    result.configure_optimizers = lambda: torch.optim.SGD(result.parameters(), lr=0.3)
    return result


def trainer(**options):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}  # fmt: skip
    return Trainer(**defaults | options)


def fit(trained, data, **options):
    """The change of all weights, (n,), and the last logged losses."""
    start = torch.nn.utils.parameters_to_vector(trained.parameters()).detach().clone()
    used = trainer(**options)
    used.fit(trained, data if isinstance(data, DataLoader) else DataLoader(data, batch_size=None))
    end = torch.nn.utils.parameters_to_vector(trained.parameters()).detach()
    return end - start, {name: value.item() for name, value in used.callback_metrics.items() if "loss" in name}


def assert_equal_steps(one, other):
    for name, loss in one[1].items():
        assert other[1][name] == pytest.approx(loss, rel=1e-5), name
    assert one[0].norm() > 1e-3
    assert (one[0] - other[0]).norm() < 1e-5 * one[0].norm()


def both(name, changes, **options):
    """Training on 6 batches with accumulation of 4, and on 2 large batches."""
    n_objectives = changes.get("n_objectives", 1)
    accumulated = fit(
        module(name, **changes), batches(name, SIZES, n_objectives), accumulate_grad_batches=4, **options
    )  # fmt: skip
    return accumulated, fit(
        module(name, **changes), batches(name, [sum(sizes) for sizes in WINDOWS], n_objectives), **options
    )  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_accumulation_equals_large_batches(name, changes):
    assert_equal_steps(*both(name, changes))


def test_clipping_acts_on_the_weighted_gradient():
    options = {"gradient_clip_val": 0.05, "callbacks": [NonFinite()]}
    accumulated, large = both("LlamaClassifier", {"head_dropout": 0.0, "lm_weight": 0.7}, **options)
    assert_equal_steps(accumulated, large)
    assert accumulated[0].norm() < 0.3 * 0.05 * 2.001  # two clipped steps
