"""Baselines that every neural model is compared with: n-grams, bags of words, marginal distributions.

Importing this package loads numpy only; scikit-learn and torch are imported by the first use of what needs them.
"""

from typing import TYPE_CHECKING

from zoo.baselines.bag_of_words import bag_of_words
from zoo.baselines.marginal import marginal_nll
from zoo.baselines.ngram import NGram
from zoo.registry import imported_on_use

if TYPE_CHECKING:
    from zoo.baselines.bow_features import BowFeatures

__all__ = ["BowFeatures", "NGram", "bag_of_words", "marginal_nll"]

__getattr__ = imported_on_use(__name__, {"BowFeatures": "zoo.baselines.bow_features"})
