"""FullContextDecoder against the cached decoders of Llama and RevDEQ, and the choice of a decoder."""

import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.generation.decoders import FullContextDecoder, evaluating, left_pad, make_decoder
from zoo.generation.sampling import generate
from zoo.llama import Llama, LlamaConfig
from zoo.revdeq import RevDEQ, RevDEQConfig

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]


class WithoutDecoder(nn.Module):
    """A network with the members that a language model needs, and no decoder."""

    def __init__(self, network, **attributes):
        super().__init__()
        self.network, self.config = network, network.config
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, tokens):
        return self.network(tokens)


def llama():
    torch.manual_seed(0)
    network = Llama(LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=24))
    for parameter in network.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return network.eval()


def revdeq():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "mlp_layers": 1}
    return RevDEQ(RevDEQConfig(vocab_size=50, max_position_embeddings=24, block="post_norm", **sizes)).eval()


@pytest.fixture(scope="module", params=[llama, revdeq])
def network(request):
    return request.param()


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3, "temperature": 0.8, "top_k": 20, "top_p": 0.9}])
@pytest.mark.parametrize("ragged", [False, True])
def test_full_context_decoder_generates_the_tokens_of_the_cached_decoder(network, options, ragged):
    tokens, lengths = left_pad(PROMPTS if ragged else [PROMPTS[0], PROMPTS[0][::-1]])
    uncached = generate(WithoutDecoder(network), tokens, 15, lengths=lengths, **options)
    cached = generate(network, tokens, 15, lengths=lengths, **options)
    assert cached.shape == (len(tokens), 22)
    assert torch.equal(uncached, cached)


def test_full_context_decoder_gives_the_logits_of_the_cached_decoder(network):
    tokens, lengths = left_pad(PROMPTS)
    decoders = FullContextDecoder(network), network.decoder(3, 8)
    with torch.no_grad():
        prompt_logits = [decoder.prefill(tokens, 7 - lengths) for decoder in decoders]
        step_logits = [decoder.step(torch.tensor([3, 4, 5])) for decoder in decoders]
    torch.testing.assert_close(*prompt_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(*step_logits, rtol=0, atol=1e-5)


def test_make_decoder_prefers_the_networks_own(network):
    assert not isinstance(make_decoder(network, 2, 8), FullContextDecoder)
    assert isinstance(make_decoder(WithoutDecoder(network), 2, 8), FullContextDecoder)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"compile": True}])
def test_network_without_decoder_refuses_precision_and_compile(options):
    with pytest.raises(UserError, match="WithoutDecoder generates in fp32 and without compilation only: drop --prec"):
        generate(WithoutDecoder(llama()), torch.tensor([[1, 2]]), 3, **options)


def test_evaluating_restores_the_mode_of_every_module():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_left_pad_aligns_prompts_on_the_right():
    tokens, lengths = left_pad([[1, 2, 3], [4]], pad=9)
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert lengths.tolist() == [3, 1]
