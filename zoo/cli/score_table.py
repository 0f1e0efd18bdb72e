"""The table that `zoo validate` and `zoo test` print: each metric of the model with its baselines."""

from collections.abc import Collection, Mapping
from typing import Any

from lightning.pytorch import Callback

from zoo.baselines.of_data import baselines_of
from zoo.console.table import table
from zoo.errors import UserError


class ScoreTable(Callback):
    """Print the metrics of a validation or test, with the scores of simple models on the same data.

    With several targets a second table has the scores of each.

    The baselines are those of `zoo.baselines.of_data`, fitted to the training split of the data. They are left out
    where the data has no training split, or has a text that takes long to tokenize.
    """

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "validate":
            self._print(trainer, pl_module, "val")

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._print(trainer, pl_module, "test")

    @staticmethod
    def _print(trainer: Any, model: Any, split: str) -> None:
        if not trainer.is_global_zero or not trainer.callback_metrics:
            return
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        fitted = {} if trainer.fast_dev_run else evaluation_baselines(trainer, model, trainer.datamodule, split)
        baselines = by_metric(scores, fitted)
        rows: list[dict[str, str]] = []
        parts: dict[str, dict[str, str]] = {}  # target -> its row in the second table
        for name, score in scores.items():
            metric, _, target = name.partition("/")
            of_others = described(baselines.get(name, {}))
            if target and metric in scores:
                column = metric.removeprefix(f"{split}_")
                row = parts.setdefault(target, {"target": target})
                row[column] = f"{score:.5g}" + (f" ({', '.join(of_others)})" if of_others else "")
            else:
                rows.append(
                    {"metric": name, "score": f"{score:.5g}"}
                    | ({"baselines": ", ".join(of_others)} if of_others else {})
                )
        print(table(rows))
        if parts:
            print(f"\nof each target, logged as {split}_<metric>/<target>:\n{table([*parts.values()])}")


def evaluation_baselines(trainer: Any, model: Any, data: Any, split: str) -> dict[str, float]:
    """The baselines of an evaluation alone; empty where the data has no training split, or one that takes long to read.

    Args:
        trainer: the Trainer.
        model: the LightningModule.
        data: its data module.
        split: "val" or "test".
    """
    try:
        if not getattr(data, "is_quickly_read", lambda split: True)("train"):
            return {}
        return baselines_of(trainer, model, data, split)
    except UserError:  # the data has no training split, or one with a row that cannot be used
        return {}


def by_metric(metrics: Collection[str], baselines: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metric -> {name of the baseline: score}, for the metrics that have baselines.

    Args:
        metrics: names with their split, such as "val_loss".
        baselines: "<metric>_<baseline>" -> score, without the split.
    """
    matched: dict[str, dict[str, float]] = {}
    for key, score in baselines.items():
        names = [name for name in metrics if key.startswith(f"{name.partition('_')[2]}_")]
        if names:
            name = max(names, key=len)
            matched.setdefault(name, {})[key[len(name.partition("_")[2]) + 1 :].replace("_", " ")] = score
    return matched


def described(scores: Mapping[str, float]) -> list[str]:
    """The baselines of one metric as texts, such as "unigram 3.232"."""
    return [f"{name} {score:.4g}" for name, score in scores.items()]
