"""Data modules: one file per kind of data, over one resumable base class.

`resumable` is the base class of all, `text_data` that of texts, `row_module` that of texts with targets, and
`regression_module` that of texts with numbers. `sources` reads files and the hub, `row_data` divides rows into splits,
and `row_text` turns the cells of a row into a text.
"""

from zoo.datamodules.linear_regression_tasks import LinearRegressionTasks
from zoo.datamodules.resumable import ZooDataModule
from zoo.datamodules.reviews import Reviews
from zoo.datamodules.synthetic_configs import SyntheticConfigs
from zoo.datamodules.text_lm import TextLM
from zoo.datamodules.text_regression import TextRegression

__all__ = ["LinearRegressionTasks", "Reviews", "SyntheticConfigs", "TextLM", "TextRegression", "ZooDataModule"]
