"""RegressLM: text in, number out, decoded token by token, with its whole distribution. See README.md here."""

from zoo.regress_lm.example import Example, ExampleInput
from zoo.regress_lm.module import RegressLM
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, P10Tokenizer

__all__ = ["Example", "ExampleInput", "IEEEFloatTokenizer", "NormalizedTokenizer", "P10Tokenizer", "RegressLM"]
