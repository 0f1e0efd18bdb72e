"""Deferred imports: a training step needs none of the deferred packages, and each is complete at its first use.

One process checks everything, because the test session has imported the packages long before.
"""

import os
import subprocess
import sys
from pathlib import Path

CHECK = """
import sys
from zoo.private_apis.deferred_imports import DYNAMO, SHORTCUTS, defer_imports, is_deferred
defer_imports()
defer_imports()  # the second call changes nothing

# A fit of a Lightning module, with an optimizer and a metric.
import inspect
import torch
import lightning.pytorch as pl
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from zoo.optim import AdamW
from zoo.cli.command_line import ZooCLI

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.accuracy = MetricCollection({"accuracy": MulticlassAccuracy(3)})
    def training_step(self, batch):
        x, y = batch
        logits = self.layer(x)
        self.log_dict(self.accuracy(logits, y))
        return torch.nn.functional.cross_entropy(logits, y)
    def configure_optimizers(self):
        return AdamW(self.parameters())

data = torch.utils.data.TensorDataset(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))
options = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
trainer = pl.Trainer(max_steps=2, accelerator="cpu", **options)
model = Model()
trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=2))
inspect.getmodule(Model.training_step)
assert all(is_deferred(name) for name in SHORTCUTS), [name for name in SHORTCUTS if not is_deferred(name)]
assert not {"transformers", "matplotlib", "scipy", "sympy", "torch.distributed.tensor"} & set(sys.modules)

# torch.compile loads its tracer, once: Lightning recognises the compiled module, and its parameters are trained on.
from lightning.pytorch.utilities.compile import OptimizedModule, to_uncompiled
optimizer = trainer.optimizers[0]
assert not isinstance(model, OptimizedModule) and is_deferred(DYNAMO)
import torch._dynamo.config as settings  # a module that takes no attributes but its settings
assert settings is torch._dynamo.config and settings.__spec__.name == "torch._dynamo.config"
assert settings.cache_size_limit == torch._dynamo.config.recompile_limit
import torch._dynamo.backends.registry as registry
assert not is_deferred(DYNAMO) and registry is torch._dynamo.backends.registry
assert sys.modules[DYNAMO] is torch._dynamo and torch._dynamo.__spec__.name == DYNAMO
compiled = torch.compile(model, backend="eager")
assert isinstance(compiled, OptimizedModule) and isinstance(compiled, torch._dynamo.OptimizedModule)
assert to_uncompiled(compiled) is model and issubclass(type(compiled), OptimizedModule)
frames = torch._dynamo.utils.counters["frames"]
double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(torch.ones(2)).tolist() == [2.0, 2.0] and frames["ok"] == 1
optimizer.zero_grad()  # whose function was disabled before the tracer was loaded
optimizer.step()

# torchmetrics and its functions and plots.
import torchmetrics
from torchmetrics.aggregation import MeanMetric
assert torchmetrics.__version__.startswith("1.") and is_deferred("torchmetrics")
assert torchmetrics.__author__ and is_deferred("torchmetrics")
assert {"Accuracy", "functional"} <= set(dir(torchmetrics))
assert torchmetrics.SpearmanCorrCoef and not is_deferred("torchmetrics")
assert torchmetrics.Metric is Metric and torchmetrics.MeanMetric is MeanMetric
assert torchmetrics.functional.accuracy and not is_deferred("torchmetrics.functional")
figure, _ = torchmetrics.MetricCollection({"accuracy": MulticlassAccuracy(3)})["accuracy"].plot(torch.tensor(0.5))
assert type(figure).__name__ == "Figure" and not is_deferred("torchmetrics.utilities.plot")
try:
    torchmetrics.no_such_metric
except AttributeError as error:
    assert "no_such_metric" in str(error)
else:
    raise AssertionError
print("done")
"""


def test_deferred_packages_load_at_their_first_use(tmp_path):
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("done\n"), done.stderr
