"""Options that every verb has, in addition to those of Lightning: data, folder of the run, callbacks."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from zoo import callbacks

CALLBACKS: dict[str, type[Callback]] = {  # top-level key -> class
    "checkpoint": callbacks.Checkpoint,
    "early_stopping": callbacks.EarlyStopping,
    "mixed_precision": callbacks.MixedPrecision,
    "non_finite": callbacks.NonFinite,
    "throughput": callbacks.Throughput,
    "samples": callbacks.Samples,
    "predictions": callbacks.Predictions,
    "plots": callbacks.Plots,
}
NOT_OPTIONS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only"}


def add_shared_options(parser: Any) -> None:
    """Add the options to the parser of a verb."""
    parser.add_argument("--data_dir", type=str | None, help="your data, instead of the config's: a file or folder")
    parser.add_argument(
        "--output_dir",
        type=str | None,
        help="folder of the run; {data} is replaced by the data's label, {time} by the start time. Default: "
        "the checkpoint's folder, else runs/<model>",
    )
    parser.add_argument(
        "--allow_other_data",
        type=bool,
        default=False,
        help="let fit --ckpt_path continue with data of another label than the checkpoint's",
    )
    parser.add_argument(
        "--automatic",
        type=bool,
        default=False,
        help="let fit choose the settings that neither a config nor an option gives from the data, by the rules of "
        "the model; they are printed and saved in the run's config.yaml",
    )
    parser.add_argument(
        "--budget",
        type=str | None,
        help="time limit of fit, such as 90s, 5min or 1.5h: the learning-rate schedule is planned to end with it",
    )
    parser.add_argument(
        "--overwrite",
        type=bool,
        default=False,
        help="let predict replace existing files of predictions, when the new ones are complete",
    )
    # Every callback's settings are options under its key.
    for key, cls in CALLBACKS.items():
        parser.add_lightning_class_args(cls, key)
