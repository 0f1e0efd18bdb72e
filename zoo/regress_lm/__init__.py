"""RegressLM: text in, distribution over numbers out, decoded token by token. See README.md.

`RegressLM` is imported on first use, because it needs Lightning.
"""

from typing import TYPE_CHECKING

from zoo.registry import imported_on_use
from zoo.regress_lm.example import Example, ExampleInput
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, P10Tokenizer

if TYPE_CHECKING:
    from zoo.regress_lm.api import RegressLM

__all__ = ["Example", "ExampleInput", "IEEEFloatTokenizer", "NormalizedTokenizer", "P10Tokenizer", "RegressLM"]

__getattr__ = imported_on_use(__name__, {"RegressLM": "zoo.regress_lm.api"})
