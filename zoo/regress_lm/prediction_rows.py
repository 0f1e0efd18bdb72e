"""Rows of predictions of RegressLM, as `zoo predict` writes them."""

from typing import Any

from torch import Tensor

from zoo.regress_lm.estimates import QUANTILES
from zoo.training.batches import TextBatch
from zoo.training.regressor import target_fields, to_json


def prediction_rows(
    batch: TextBatch,
    values: dict[str, Tensor],
    point: str,
    common: dict[str, Any],
    samples: Tensor | None = None,
) -> list[dict[str, Any]]:
    """One dictionary for each text of a batch.

    Args:
        batch: B texts, whose targets may be unknown.
        values: "median", "mean", "std", "mode" and "pit" (B, K), and "quantiles" (B, K, 5).
        point: the value that is the prediction.
        common: fields that all rows have.
        samples: (B, S, K) to list as well.
    """
    # Copy the batch's results to the CPU together: every copy waits for a GPU.
    values = {name: value.cpu() for name, value in values.items()}
    targets, samples = batch.targets.cpu(), None if samples is None else samples.cpu()
    rows = []
    for i, (index, text, target) in enumerate(zip(batch.index.tolist(), batch.texts, targets, strict=True)):
        row: dict[str, Any] = {"index": index, "input": text, "prediction": to_json(values[point][i])} | common
        row |= {name: to_json(values[name][i]) for name in ("median", "mean", "std", "mode")}
        quantiles = values["quantiles"][i]  # (K, 5)
        row["quantiles"] = {f"{q:g}": to_json(quantiles[:, j]) for j, q in enumerate(QUANTILES)}
        if samples is not None:
            row["samples"] = samples[i].squeeze(-1).tolist()
        rows.append(row | target_fields(target, pit=values["pit"][i]))
    return rows
