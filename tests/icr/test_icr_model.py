"""The network: GPT-2 to the digit, blind to what comes later, and the same alone or side by side."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model

from zoo.icr import ICRegConfig
from zoo.icr.model import Network
from zoo.layers import linear

SMALL = {"D": 3, "K": 5, "d_model": 16, "d_mlp": 40, "n_heads": 2, "n_layers": 3}


def network(members=None, seed=0, **options):
    """One whose weights are all in use: nothing is 0 or 1."""
    net = Network(ICRegConfig(**{**SMALL, **options}), members)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (name.endswith("weight") and "norm" in name))
    return net


def prompts(*shape, D=3, K=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape[-1], K, D, generator=generator)
    return x, torch.randn(*shape, K, generator=generator)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [({"d_model": 128, "d_mlp": 512, "n_heads": 2, "n_layers": 8}, 1_591_808),
     ({"d_model": 64, "d_mlp": 256, "n_heads": 2, "n_layers": 4}, 202_752)],
)  # fmt: skip
def test_the_papers_sizes(sizes, count):
    config = ICRegConfig(**sizes)
    assert sum(p.numel() for p in Network(config).parameters()) == count
    assert sum(p.numel() for p in Network(config, members=3).parameters()) == 3 * count


def gpt2(net):
    """A GPT2Model of transformers with the network's weights."""
    c = net.config
    theirs = GPT2Model(
        GPT2Config(
            vocab_size=1, n_positions=2 * c.K, n_embd=c.d_model, n_layer=c.n_layers, n_head=c.n_heads, n_inner=c.d_mlp,
            activation_function="gelu_new", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    ours = net.state_dict()
    names = {"norm1": "ln_1", "qkv": "attn.c_attn", "proj": "attn.c_proj", "norm2": "ln_2", "up": "mlp.c_fc",
             "down": "mlp.c_proj"}  # fmt: skip
    state = {"wte.weight": torch.zeros(1, c.d_model), "wpe.weight": ours["positions"]}
    state |= {f"ln_f.{end}": ours[f"norm.{end}"] for end in ("weight", "bias")}
    for i in range(c.n_layers):
        for mine, yours in names.items():
            weight = ours[f"layers.{i}.{mine}.weight"]  # theirs multiply from the right
            state[f"h.{i}.{yours}.weight"] = weight if "norm" in mine else weight.T
            state[f"h.{i}.{yours}.bias"] = ours[f"layers.{i}.{mine}.bias"]
    theirs.load_state_dict(state)
    return theirs


def tokens(x, y):
    """(B, 2 k, D + 1): x_k as [0, x_k], y_k as [y_k, 0]."""
    places = [t for k in range(x.shape[1]) for t in (F.pad(x[:, k], (1, 0)), F.pad(y[:, k, None], (0, x.shape[2])))]
    return torch.stack(places, 1)


@pytest.mark.parametrize("k", [5, 3, 1])
def test_it_is_gpt2(k):
    net = network()
    x, y = (part[:, :k] for part in prompts(7))
    with torch.no_grad():
        embedded = tokens(x, y) @ net.embed.weight.T
        hidden = gpt2(net)(inputs_embeds=embedded).last_hidden_state
        expected = (hidden @ net.readout.weight.T)[:, ::2, 0]
        torch.testing.assert_close(net(x, y), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def by_the_book(net, x, y):
    """The network with no step left out, in fp64, a place and a head at a time."""
    c, p = net.config, {name: tensor.double() for name, tensor in net.state_dict().items()}

    def linear(h, name):
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(h, name):
        centred = h - h.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def attend(h, name):
        q, k, v = linear(h, f"{name}.qkv").split(c.d_model, -1)
        out, size = torch.zeros_like(h), c.d_model // c.n_heads
        for head in range(c.n_heads):
            some = slice(head * size, (head + 1) * size)
            for t in range(h.shape[1]):
                scores = (k[:, : t + 1, some] @ q[:, t, some, None])[..., 0] / size**0.5
                out[:, t, some] = (scores.softmax(-1)[..., None] * v[:, : t + 1, some]).sum(1)
        return linear(out, f"{name}.proj")

    def mlp(h, name):
        a = linear(h, f"{name}.up")
        return linear(a / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))), f"{name}.down")

    h = tokens(x, y).double() @ p["embed.weight"].T + p["positions"][: 2 * x.shape[1]]
    for i in range(c.n_layers):
        name = f"layers.{i}"
        if c.use_prenorm:
            h = h + attend(norm(h, f"{name}.norm1"), name)
            h = h + mlp(norm(h, f"{name}.norm2"), name)
        else:
            h = norm(h + attend(h, name), f"{name}.norm1")
            h = norm(h + mlp(h, name), f"{name}.norm2")
    h = norm(h, "norm") if c.use_prenorm else h
    return (h @ p["readout.weight"].T)[:, ::2, 0]


@pytest.mark.parametrize("use_prenorm", [True, False])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_it_is_the_network_of_the_book(use_prenorm, n_layers):
    net = network(use_prenorm=use_prenorm, n_layers=n_layers)
    x, y = prompts(4)
    with torch.no_grad():
        torch.testing.assert_close(net(x, y).double(), by_the_book(net, x, y), rtol=1e-5, atol=1e-5)
    assert ("norm.weight" in net.state_dict()) == use_prenorm


@pytest.mark.parametrize("use_prenorm", [True, False])
@pytest.mark.parametrize("n_layers", [1, 3])
@torch.no_grad()
def test_nothing_is_known_before_its_time(use_prenorm, n_layers):
    net = network(use_prenorm=use_prenorm, n_layers=n_layers)
    x, y = prompts(4)
    before = net(x, y)
    for j in range(5):
        for changed in (x, y):
            kept = changed.clone()
            changed[:, j:] += 1
            after = net(x, y)
            first = j if changed is x else j + 1  # its own x is known to a prediction, its own y is not
            torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=1e-6)
            assert ((after - before)[:, first:].abs().amax(0) > 1e-3).all()
            changed.copy_(kept)


@torch.no_grad()
def test_a_shorter_prompt_has_the_same_predictions():
    net, (x, y) = network(), prompts(4)
    for k in range(1, 6):
        torch.testing.assert_close(net(x[:, :k], y[:, :k]), net(x, y)[:, :k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_prenorm", [True, False])
@pytest.mark.parametrize("k", [5, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by oneDNN, and as batches of products
def test_members_are_networks_side_by_side(use_prenorm, k, dtype):
    singles = [network(seed=seed, use_prenorm=use_prenorm).to(dtype) for seed in range(3)]
    stack = network(members=3, use_prenorm=use_prenorm).to(dtype)
    stack.load_state_dict({n: torch.stack([one.state_dict()[n] for one in singles]) for n in stack.state_dict()})
    x, y = prompts(3, 6)
    x, y = x[:, :k].to(dtype), y[..., :k].to(dtype)
    together = stack(x, y)
    assert together.shape == (3, 6, k)
    (together - y).square().mean((-2, -1)).sum().backward()
    together_grad = {name: p.grad for name, p in stack.named_parameters()}
    for m, one in enumerate(singles):
        alone = one(x, y[m])
        torch.testing.assert_close(together[m], alone, rtol=1e-5, atol=1e-5)
        (alone - y[m]).square().mean().backward()
        for name, p in one.named_parameters():
            torch.testing.assert_close(together_grad[name][m], p.grad, rtol=1e-4, atol=1e-5)


def test_it_starts_small_and_members_start_equal():
    config = ICRegConfig(d_model=64, d_mlp=256, n_layers=4)
    net, stack = Network(config), Network(config, members=2)
    for one in (net, stack):
        one.initialize(torch.Generator().manual_seed(5))
    for name, p in stack.named_parameters():
        assert torch.equal(p[0], p[1])
        assert torch.equal(p[0], net.get_parameter(name))
    deviations = {name: p.std().item() for name, p in net.named_parameters() if p.ndim == 2}
    for name, deviation in deviations.items():
        narrow = "proj" in name or "down" in name
        assert deviation == pytest.approx(0.02 / (8**0.5 if narrow else 1), rel=0.3), name
    assert (net.layers[0].norm1.weight == 1).all()
    assert not net.layers[0].up.bias.any()
    x, y = prompts(4, D=8, K=16)
    assert net(x, y).abs().max() < 1


def test_the_arithmetic_is_counted(monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN", None)  # the counter does not know its products
    net = Network(ICRegConfig(d_model=64, d_mlp=256, n_layers=4))
    x, y = prompts(2, D=8, K=16)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, y).sum().backward()
    c, T = net.config, 31
    masked = 3 * 2 * T * c.d_model * ((c.n_layers - 1) * T + c.K)  # the half that causality spares, counted there
    assert net.flops() + masked == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
