"""`require` compares an object with a protocol and names every missing member."""

import pytest

from zoo.llama import Llama, LlamaConfig
from zoo.training.protocols import Decoder, LanguageModelConfig, LanguageModelNetwork, members, require


class NoLoss:
    config = None

    def forward(self, tokens): ...

    def flops_per_token(self, seq_len): ...


def test_members_are_the_public_attributes_and_methods():
    assert set(members(LanguageModelNetwork)) == {"config", "forward", "loss", "flops_per_token"}
    assert set(members(LanguageModelConfig)) == {"vocab_size", "max_seq_len"}


def test_require_names_the_missing_member_and_its_documentation():
    with pytest.raises(TypeError, match="NoLoss is not a LanguageModelNetwork: it lacks loss; loss: Mean negative"):
        require(NoLoss(), LanguageModelNetwork)
    with pytest.raises(TypeError, match=r"NoLoss is not a Decoder: it lacks prefill, step; prefill: Logits \(B, V\)"):
        require(NoLoss(), Decoder)
    with pytest.raises(TypeError, match=r"NoneType is not a LanguageModelConfig: it lacks vocab_size, max_seq_len$"):
        require(None, LanguageModelConfig)


def test_llama_satisfies_the_protocols():
    network = Llama(LlamaConfig(vocab_size=10, dim=8, n_layers=1, n_heads=2))
    require(network, LanguageModelNetwork)
    require(network.config, LanguageModelConfig)
    require(network.decoder(1, 4), Decoder)
