"""The zoo's data: one file per kind, over one resumable base."""

from datamodules.resumable import ZooDataModule
from datamodules.text_lm import TextLM

__all__ = ["TextLM", "ZooDataModule"]
