"""Accumulation and several ranks: every optimizer step equals that of one batch of all its rows, for every model."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.shared.test_python_use import model as small_model
from zoo.callbacks import Checkpoint, MixedPrecision, NonFinite
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import IGNORED, collate, text_rows
from zoo.training.loss_weights import Loss, WeightedLosses, Window

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


class Stream(IterableDataset):
    """Batches without a length, which `limit_train_batches` may end early."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


@pytest.mark.parametrize(("extra", "workers"), [(0, 1), (5, 0)])
def test_accumulation_on_a_stream(extra, workers, monkeypatch):
    """Two epochs of 6 batches; with `extra` the loader has more, which no window may include."""
    items = batches("LlamaLM", SIZES)
    options = {"max_epochs": 2, "limit_train_batches": 6} if extra else {"max_epochs": 2}
    loader = DataLoader(Stream(items + items[:extra]), batch_size=None, num_workers=workers)
    seen = []
    step = WeightedLosses.step_loss
    monkeypatch.setattr(WeightedLosses, "step_loss", lambda *args: (seen.append(args[1]), step(*args))[1])
    accumulated = fit(module("LlamaLM"), loader, accumulate_grad_batches=4, **options)
    assert [len(batch[0]) for batch in seen] == 2 * SIZES
    large = fit(module("LlamaLM"), batches("LlamaLM", [sum(sizes) for sizes in WINDOWS]), max_epochs=2)
    assert_equal_steps(accumulated, large)


def test_accumulation_that_changes_between_epochs():
    schedule = GradientAccumulationScheduler({0: 1, 1: 4})
    changing = fit(module("LlamaLM"), batches("LlamaLM", SIZES), max_epochs=2, callbacks=[schedule])
    first = module("LlamaLM")
    start, _ = fit(first, batches("LlamaLM", SIZES))
    second, losses = fit(first, batches("LlamaLM", [sum(sizes) for sizes in WINDOWS]))
    assert_equal_steps((start + second, losses), changing)


def test_fp16_scaling():
    """The gradient scaler's factor and the weights of the losses are independent."""
    options = {"head_dropout": 0.0, "lm_weight": 0.7}
    precision = {"callbacks": [MixedPrecision("fp16", devices=("cpu",))]}
    accumulated, large = both("LlamaClassifier", options, **precision)
    assert (accumulated[0] - large[0]).norm() < 0.02 * large[0].norm()


def unweighted(self, batch, *losses):
    return sum(loss.weight * loss.mean for loss in losses)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_equal_counts_leave_every_bit_as_it_was(accumulate, monkeypatch):
    def weights():
        result = module("LlamaLM", dropout=0.1)
        torch.manual_seed(0)
        tokens = torch.randint(257, (12, 8))
        loader = DataLoader(TensorDataset(tokens, tokens), batch_size=2, shuffle=True)
        fit(result, loader, accumulate_grad_batches=accumulate)
        return result.state_dict()

    weighted = weights()
    monkeypatch.setattr(WeightedLosses, "step_loss", unweighted)
    for name, tensor in weights().items():
        assert torch.equal(tensor, weighted[name]), name


def test_one_batch_per_step_on_one_process_counts_nothing(monkeypatch):
    trained = module("LlamaLM")
    monkeypatch.setattr(type(trained), "loss_counts", None)
    fit(trained, batches("LlamaLM", SIZES))


class RankBatches(DataLoader):
    """Batches of which rank r of n takes number r, r + n, ..."""

    def __init__(self, items):
        super().__init__(items, batch_size=None)

    def __iter__(self):
        return iter([self.dataset[i] for i in range(torch.distributed.get_rank(), len(self.dataset), 2)])

    def __len__(self):
        return len(self.dataset) // 2


def test_two_processes_equal_one(tmp_path):
    """Two ranks with batches of 3 and 1, 4 and 2, 1 and 5 rows, accumulated by 2: windows of 10 and 6 rows."""
    options = {"head_dropout": 0.0, "lm_weight": 0.7}
    trained = module("LlamaClassifier", **options)
    two = trainer(
        devices=2, strategy="ddp_fork", use_distributed_sampler=False, accumulate_grad_batches=2,
        callbacks=[Checkpoint(str(tmp_path))], enable_checkpointing=True,
    )  # fmt: skip
    two.fit(trained, RankBatches(batches("LlamaClassifier", SIZES)))
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    one = module("LlamaClassifier", **options)
    _, losses = fit(one, batches("LlamaClassifier", [10, 6]))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: name + m)
    for name, loss in losses.items():
        assert two.callback_metrics[name].item() == pytest.approx(loss, rel=1e-5), name


def test_weights_on_a_gpu_wait_for_nothing():
    """On pretended CUDA tensors reading a value raises an error. Batches that are ahead may still be on the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda")
        tokens, mean = torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), device=device)
        window = Window(0, [[3, tokens], [2, torch.tensor(5)]], device)
        factors = window.add([Loss("a", mean), Loss("b", mean)], [3, tokens], 4)
        assert factors.device.type == window.means().device.type == "cuda"
