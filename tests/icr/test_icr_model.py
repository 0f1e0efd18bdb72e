"""The network: equal to GPT-2, causal, and the same for single and stacked members."""

import math
import subprocess
import sys

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
    """A network in which no weight is 0 or 1."""
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
def test_parameter_counts_equal_the_papers(sizes, count):
    config = ICRegConfig(**sizes)
    assert sum(p.numel() for p in Network(config).parameters()) == count
    assert sum(p.numel() for p in Network(config, members=3).parameters()) == 3 * count


def gpt2(net):
    """transformers' GPT2Model with the network's weights."""
    c = net.config
    peer = GPT2Model(
        GPT2Config(
            vocab_size=1, n_positions=2 * c.K, n_embd=c.d_model, n_layer=c.n_layers, n_head=c.n_heads, n_inner=c.d_mlp,
            activation_function="gelu_new", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    state_dict = net.state_dict()
    names = {"norm1": "ln_1", "qkv": "attn.c_attn", "proj": "attn.c_proj", "norm2": "ln_2", "up": "mlp.c_fc",
             "down": "mlp.c_proj"}  # fmt: skip
    state = {"wte.weight": torch.zeros(1, c.d_model), "wpe.weight": state_dict["positions"]}
    state |= {f"ln_f.{end}": state_dict[f"norm.{end}"] for end in ("weight", "bias")}
    for i in range(c.n_layers):
        for own, other in names.items():
            weight = state_dict[f"layers.{i}.{own}.weight"]  # transformers stores the transposed matrix
            state[f"h.{i}.{other}.weight"] = weight if "norm" in own else weight.T
            state[f"h.{i}.{other}.bias"] = state_dict[f"layers.{i}.{own}.bias"]
    peer.load_state_dict(state)
    return peer


def tokens(x, y):
    """(B, 2 k, D + 1): x_k as [0, x_k], y_k as [y_k, 0]."""
    places = [t for k in range(x.shape[1]) for t in (F.pad(x[:, k], (1, 0)), F.pad(y[:, k, None], (0, x.shape[2])))]
    return torch.stack(places, 1)


@pytest.mark.parametrize("k", [5, 3, 1])
def test_equals_gpt2_of_transformers(k):
    net = network()
    x, y = (part[:, :k] for part in prompts(7))
    with torch.no_grad():
        embedded = tokens(x, y) @ net.embed.weight.T
        hidden = gpt2(net)(inputs_embeds=embedded).last_hidden_state
        expected = (hidden @ net.readout.weight.T)[:, ::2, 0]
        torch.testing.assert_close(net(x, y), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def reference_network(net, x, y):
    """The network without shortcuts, in fp64, one position and head at a time."""
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
def test_equals_the_reference_network(use_prenorm, n_layers):
    net = network(use_prenorm=use_prenorm, n_layers=n_layers)
    x, y = prompts(4)
    with torch.no_grad():
        torch.testing.assert_close(net(x, y).double(), reference_network(net, x, y), rtol=1e-5, atol=1e-5)
    assert ("norm.weight" in net.state_dict()) == use_prenorm


@pytest.mark.parametrize("use_prenorm", [True, False])
@pytest.mark.parametrize("n_layers", [1, 3])
@torch.no_grad()
def test_causality(use_prenorm, n_layers):
    net = network(use_prenorm=use_prenorm, n_layers=n_layers)
    x, y = prompts(4)
    before = net(x, y)
    for j in range(5):
        for changed in (x, y):
            original = changed.clone()
            changed[:, j:] += 1
            after = net(x, y)
            first = j if changed is x else j + 1  # a prediction depends on its own x, not on its own y
            torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=1e-6)
            assert ((after - before)[:, first:].abs().amax(0) > 1e-3).all()
            changed.copy_(original)


@torch.no_grad()
def test_shorter_prompts_have_the_same_predictions():
    net, (x, y) = network(), prompts(4)
    for k in range(1, 6):
        torch.testing.assert_close(net(x[:, :k], y[:, :k]), net(x, y)[:, :k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_prenorm", [True, False])
@pytest.mark.parametrize("k", [5, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by oneDNN, and by batched products
def test_members_equal_single_networks(use_prenorm, k, dtype):
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


def test_initial_weights():
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


def test_flops_equal_torchs_count(monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN", None)  # the counter does not know oneDNN's products
    net = Network(ICRegConfig(d_model=64, d_mlp=256, n_layers=4))
    x, y = prompts(2, D=8, K=16)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, y).sum().backward()
    c, T = net.config, 31
    masked = 3 * 2 * T * c.d_model * ((c.n_layers - 1) * T + c.K)  # the masked half of the scores, which torch counts
    assert net.flops() + masked == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_network_exports_and_compiles():
    net = network().eval()
    x, y = prompts(4)
    expected = net(x, y)
    exported = torch.export.export(net, (x, y)).module()
    torch.testing.assert_close(exported(x, y), expected, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", ["zoo.icr", "zoo.icr.model"])
def test_network_imports_without_lightning(module):
    code = f"import sys, {module}; sys.exit(any('lightning' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
