"""The training of a regression model, whatever network reads the text: its losses, and how good its estimates are."""

from abc import abstractmethod
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.errors import UserError
from zoo.training.batches import TextBatch
from zoo.training.module import ZooModule


def scores(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """How near predictions (N, K) come to targets (N, K), each score averaged over the K objectives.

    mae and median_error are the mean and the median of |prediction - target|, rmse and r2 of its square, all in the
    targets' unit; spearman and pearson are correlations. r2 and rmse are decided by the largest targets: mistrust them
    where the targets span orders of magnitude. NaN where a score has no meaning (a constant, a single row).
    """
    columns = []
    for p, t in zip(predictions.T, targets.T, strict=True):
        error = np.abs(p - t)
        vary = len(t) > 1 and np.ptp(p) > 0 and np.ptp(t) > 0  # scipy would warn of what NaN says
        columns.append(
            {
                "mae": error.mean(),
                "median_error": np.median(error),
                "rmse": np.sqrt(np.square(error).mean()),
                "r2": 1 - np.square(error).sum() / np.square(t - t.mean()).sum() if np.ptp(t) > 0 else np.nan,
                "spearman": stats.spearmanr(p, t).statistic if vary else np.nan,
                "pearson": stats.pearsonr(p, t).statistic if vary else np.nan,
            }
        )
    return {name: float(np.mean([column[name] for column in columns])) for name in columns[0]}


class Gathered(Metric):
    """Tensors (B, ...) by name, over all batches and all ranks."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, **columns: Tensor) -> None:
        for name in self.names:
            getattr(self, name).append(columns[name].detach())

    def compute(self) -> dict[str, np.ndarray]:
        return {name: dim_zero_cat(getattr(self, name)).double().cpu().numpy() for name in self.names}


class Regressor(ZooModule):
    """Training over a `TextRegression`-like DataModule. A subclass gives `losses` and `estimate`.

    Logged: `train_loss`, and for val and test `<split>_loss` and every one of `scores`.
    """

    item = "samples"  # what Throughput counts
    columns: tuple[str, ...] = ("loss", "prediction", "target")  # what `evaluate` gives for each row
    model: Any
    gathered: Any

    def __init__(self) -> None:
        super().__init__()
        self.gathered = nn.ModuleDict({split: Gathered(self.columns) for split in ("val", "test")})

    @property
    def data(self) -> Any:
        """The DataModule of the running trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        given, wanted = self.data.n_objectives, self.hparams["n_objectives"]
        if stage != "predict" and given != wanted:
            raise UserError(
                f"the data has {given} target columns, but the model n_objectives {wanted}: make them equal"
            )

    @abstractmethod
    def losses(self, batch: TextBatch) -> Tensor:
        """(B,) the loss of every row; training takes their mean."""

    @abstractmethod
    def estimate(self, batch: TextBatch) -> Tensor:
        """(B, K) one number for every row and objective, in the targets' unit."""

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        loss = self.losses(batch).mean()
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.index))
        return loss

    def count(self, batch: TextBatch) -> int:
        """Samples of a training batch."""
        return len(batch.index)

    def flops_per_item(self, batch: TextBatch) -> float:
        """Floating-point operations of one training sample, forward and backward."""
        return self.model.flops(batch.tokens.shape[1])

    def validation_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._gather("val", batch)

    def test_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._gather("test", batch)

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def on_test_epoch_end(self) -> None:
        self._log("test")

    def evaluate(self, batch: TextBatch) -> dict[str, Tensor]:
        """A (B, ...) tensor for each of `columns`."""
        return {"loss": self.losses(batch), "prediction": self.estimate(batch), "target": batch.targets}

    def reached(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        """What is logged of a whole split's `columns`."""
        return {"loss": float(columns["loss"].mean()), **scores(columns["prediction"], columns["target"])}

    def _gather(self, split: str, batch: TextBatch) -> dict[str, Tensor]:
        columns = self.evaluate(batch)
        self.gathered[split].update(**columns)
        return columns  # for callbacks that draw them

    def _log(self, split: str) -> None:
        gathered = self.gathered[split]
        reached = self.reached(gathered.compute())  # equal on all ranks: the metric has synced
        self.log_dict({f"{split}_{name}": value for name, value in reached.items()}, sync_dist=True)
        gathered.reset()

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One row for every text: its place, the text, the prediction and, where it is known, the target."""
        rows = zip(batch.index.tolist(), batch.texts, self.estimate(batch), batch.targets, strict=True)
        return [
            {"index": i, "input": text, "prediction": plain(prediction)} | known(target)
            for i, text, prediction, target in rows
        ]


def plain(values: Tensor) -> float | list[float]:
    """What JSON is given for the K objectives of a row: the number itself where there is one."""
    return values.item() if values.numel() == 1 else values.tolist()


def known(target: Tensor, **others: Tensor) -> dict[str, Any]:
    """The row's target, and what follows from it, as parts of a prediction; nothing where it is unknown."""
    return {} if target.isnan().any() else {"target": plain(target)} | {n: plain(x) for n, x in others.items()}
