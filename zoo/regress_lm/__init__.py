"""RegressLM: text in, distribution over numbers out, decoded token by token. See README.md.

Where to start reading:
- the network: `model`, and `decoding`, which samples from it;
- numbers as tokens: `number_tokenizers`, `vocabulary`, and `automaton`, which tokens may follow each other;
- the LightningModule, each class a subclass of the one before: `number_sampler` (samples and calibration),
  `encoder_user` (pretrained encoders), `encoder_pretraining` (span denoising), `module` (loss, metrics, predictions)
  and `api` (lists of examples);
- settings that follow from the data: `defaults`.

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
