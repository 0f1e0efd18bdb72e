"""Data modules: one file per kind of data, over one resumable base class."""

from zoo.datamodules.linear_regression_tasks import LinearRegressionTasks
from zoo.datamodules.resumable import ZooDataModule
from zoo.datamodules.reviews import Reviews
from zoo.datamodules.synthetic_configs import SyntheticConfigs
from zoo.datamodules.text_lm import TextLM
from zoo.datamodules.text_regression import TextRegression

__all__ = ["LinearRegressionTasks", "Reviews", "SyntheticConfigs", "TextLM", "TextRegression", "ZooDataModule"]
