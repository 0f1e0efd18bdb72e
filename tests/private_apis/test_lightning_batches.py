"""The batches of an accumulation window are seen in advance, and trained on once and in order."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from zoo.private_apis.lightning_batches import Lookahead, attached_trainer, is_window_start, rest_of_window


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(7.0).split(1))


class Recorder(LightningModule):
    """Records each batch, and at the start of each window those that follow in it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.batches: list[int] = []
        self.windows: list[list[int]] = []

    def training_step(self, batch, batch_idx: int):
        self.batches.append(int(batch[0]))
        if is_window_start(self.trainer):
            self.windows.append([int(following[0]) for following in rest_of_window(self.trainer)])
            assert self.windows[-1] == [int(following[0]) for following in rest_of_window(self.trainer)]
        return self.linear(batch[0].view(1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("limit", [5, 1.0])
@pytest.mark.parametrize("dataset", [Numbers(), TensorDataset(torch.arange(7.0))])
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_rest_of_window(dataset, limit):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    module, trainer = (
        Recorder(),
        Trainer(accelerator="cpu", max_epochs=2, accumulate_grad_batches=3, limit_train_batches=limit, **off),
    )
    assert attached_trainer(module) is None
    trainer.fit(module, DataLoader(dataset, batch_size=None if isinstance(dataset, Numbers) else 1))
    assert attached_trainer(module) is trainer
    assert module.batches == 2 * list(range(5 if limit == 5 else 7))
    assert module.windows == 2 * ([[1, 2], [4]] if limit == 5 else [[1, 2], [4, 5], []])


def test_lookahead():
    items = Lookahead(iter(range(4)))
    assert items.peek(2) == items.peek(2) == [0, 1]
    assert [next(items), items.peek(1), next(items)] == [0, [1], 1]
    assert items.peek(9) == [2, 3]
    assert list(items) == [2, 3]
    assert items.peek(1) == list(items) == []
