"""The zoo's data: one file per kind, over one resumable base."""

from datamodules.resumable import ZooDataModule
from datamodules.synthetic_configs import SyntheticConfigs
from datamodules.text_lm import TextLM
from datamodules.text_regression import TextRegression

__all__ = ["SyntheticConfigs", "TextLM", "TextRegression", "ZooDataModule"]
