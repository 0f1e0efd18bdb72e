"""The zoo's data: one file per kind, over one resumable base."""

from datamodules.linear_regression_tasks import LinearRegressionTasks
from datamodules.resumable import ZooDataModule
from datamodules.reviews import Reviews
from datamodules.synthetic_configs import SyntheticConfigs
from datamodules.text_lm import TextLM
from datamodules.text_regression import TextRegression

__all__ = ["LinearRegressionTasks", "Reviews", "SyntheticConfigs", "TextLM", "TextRegression", "ZooDataModule"]
