"""Which rows `zoo predict` reads where the command names no data: a sentence on standard error."""

import sys
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback

_SPLITS = {"test": "the test split", "val": "the validation split", "predict": "the rows without targets"}


class PredictedRows(Callback):
    """Print the number of rows and their split when a prediction starts."""

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        if not trainer.is_global_zero or not hasattr(data, "predicted_split"):
            return
        split = data.predicted_split
        which = _SPLITS.get(split, "all rows, those of the training included")
        n = len(data.dataset("predict"))
        print(
            f"zoo: predicts {which}, {n} in all, of {data.hparams['data']}, the data set of the training: add "
            "--data_dir for other data",
            file=sys.stderr,
        )


def names_data(keys: Iterable[tuple[str, str]]) -> bool:
    """Whether a command names its data.

    Args:
        keys: (dotted key, its source) of all settings that were given.
    """
    return any(key in ("data_dir", "data.data", "data.init_args.data") for key, _ in keys)
