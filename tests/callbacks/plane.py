"""Helper of the tests of callbacks: a model of one weight matrix, its data and its Trainer."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from zoo.callbacks import Checkpoint
from zoo.datamodules import ZooDataModule


class Points(ZooDataModule):
    """Points on a plane, with their indices."""

    def __init__(self, samples: int = 8) -> None:
        super().__init__(batch_size=2)
        self.samples = samples

    def dataset(self, split):
        x = torch.randn(self.samples, 4, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True), torch.arange(self.samples))


class Plane(LightningModule):
    """Linear regression whose validation losses are given in advance."""

    item = "samples"

    def __init__(self, val_losses=()) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.val_losses = iter(val_losses)
        self.sampled_at = []

    def count(self, batch):
        return len(batch[0])

    def flops_per_item(self, batch):
        return 24.0

    def sample_text(self, prompt, max_new_tokens, temperature):
        self.sampled_at.append(self.global_step)
        return f"{prompt} and <b>more</b>"

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        self.log("val_loss", next(self.val_losses, 0.0), sync_dist=True)

    def validation_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        y = self.net(batch[0])[:, 0]
        return [{"index": i, "y": v} for i, v in zip(batch[2].tolist(), y.tolist(), strict=True)]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(folder, *callbacks, **options):
    defaults = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": -1,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]
