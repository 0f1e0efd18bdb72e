"""A transformer that reads examples (x, y) of a linear regression and predicts each y from the examples before it.

Raventós et al. 2023, https://arxiv.org/abs/2306.15063: GPT-2 (Radford et al. 2019) over tokens of D + 1 numbers,
x_k as [0, x_k] and y_k as [y_k, 0]; the prediction of y_k is read where x_k stands. Positions are learned; the maps
into and out of the transformer have no bias. Departures, none of which changes a prediction:
- the last token, y_K, is not computed, for nobody reads it;
- nor is the last layer, but for its keys and values, where a y stands.

With `members` the same network stands several times side by side, each with its own weights.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from zoo.errors import UserError
from zoo.icr.task import Task
from zoo.layers.linear import by_onednn, linear


@dataclass
class ICRegConfig(Task):
    """The task and the network that learns it; the defaults are those of the script this study comes from.

    Args:
        d_model: width of the residual stream.
        d_mlp: width inside each MLP.
        n_heads: attention heads; they divide d_model.
        n_layers: blocks.
        use_prenorm: LayerNorm before each branch, and once at the end, as in GPT-2; else after each branch.
        init_std: standard deviation of the first weights. GPT-2's 0.02 suits long runs; a narrow network that is to
            learn in a thousand steps starts better from about 0.1.
    """

    d_model: int = 512
    d_mlp: int = 512
    n_heads: int = 4
    n_layers: int = 3
    use_prenorm: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d_model", "d_mlp", "n_heads", "n_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise UserError(f"d_model {self.d_model} does not divide into n_heads {self.n_heads}")
        if not 0 < self.init_std < float("inf"):
            raise UserError(f"init_std must be positive, not {self.init_std}")


class Linear(nn.Module):
    """x (..., B, T, n) -> (..., B, T, m); with members a leading axis on x, weight and bias."""

    def __init__(self, n: int, m: int, members: tuple[int, ...], bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*members, m, n))
        self.bias = nn.Parameter(torch.zeros(*members, m)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return linear(x, self.weight, self.bias)
        rows, weight = x.flatten(1, -2), self.weight.mT  # (S, B T, n), (S, n, m)
        out = rows @ weight if self.bias is None else torch.baddbmm(self.bias[:, None], rows, weight)
        return out.unflatten(1, x.shape[1:-1])


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5) * weight + bias."""

    def __init__(self, n: int, members: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(*members, n)), nn.Parameter(torch.zeros(*members, n))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        return torch.addcmul(self.bias[:, None, None], F.layer_norm(x, x.shape[-1:]), self.weight[:, None, None])


class Block(nn.Module):
    """Self-attention and an MLP, each a branch of the residual stream."""

    def __init__(self, config: ICRegConfig, members: tuple[int, ...]) -> None:
        super().__init__()
        self.n_heads, self.prenorm = config.n_heads, config.use_prenorm
        self.norm1, self.norm2 = LayerNorm(config.d_model, members), LayerNorm(config.d_model, members)
        self.qkv = Linear(config.d_model, 3 * config.d_model, members)
        self.proj = Linear(config.d_model, config.d_model, members)
        self.up = Linear(config.d_model, config.d_mlp, members)
        self.down = Linear(config.d_mlp, config.d_model, members)

    def attend(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """h (..., B, T, d) -> (..., B, T, d), causal; with a mask (K, T) only at every second place."""
        q, k, v = self.qkv(h).unflatten(-1, (3, self.n_heads, -1)).unbind(-3)  # (..., B, T, H, hd)
        q = q if mask is None else q[..., ::2, :, :]
        query, key, value = (part.flatten(0, -4).transpose(1, 2) for part in (q, k, v))  # (... B, H, T, hd)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.proj(mixed.transpose(1, 2).reshape(*q.shape[:-2], -1))

    def mlp(self, h: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(h), approximate="tanh"))

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """h (..., B, T, d) -> the same; with a mask (K, T) its rows at places 0, 2, ... alone."""
        kept = h if mask is None else h[..., ::2, :]
        if self.prenorm:
            kept = kept + self.attend(self.norm1(h), mask)
            return kept + self.mlp(self.norm2(kept))
        kept = self.norm1(kept + self.attend(h, mask))
        return self.norm2(kept + self.mlp(kept))


class Network(nn.Module):
    """The transformer, or `members` of them."""

    def __init__(self, config: ICRegConfig, members: int | None = None) -> None:
        super().__init__()
        self.config = config
        axis = () if members is None else (members,)
        with torch.device("meta"):
            self._one: list[nn.Module] = [] if members is None else [Network(config)]  # in a list: not a part of this
        self.embed = Linear(config.D + 1, config.d_model, axis, bias=False)
        self.positions = nn.Parameter(torch.empty(*axis, 2 * config.K, config.d_model))
        self.layers = nn.ModuleList(Block(config, axis) for _ in range(config.n_layers))
        self.norm = LayerNorm(config.d_model, axis) if config.use_prenorm else nn.Identity()
        self.readout = Linear(config.d_model, 1, axis, bias=False)
        self.initialize(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """As GPT-2's: N(0, init_std^2), branches' last matrices narrower by sqrt(2 n_layers). Members start equal."""
        narrower = 1 / math.sqrt(2 * self.config.n_layers)
        for name, p in self.named_parameters():
            if "norm" not in name and "bias" not in name:
                std = self.config.init_std * (narrower if "proj" in name or "down" in name else 1)
                p.copy_(std * torch.randn(p.shape[-2:], generator=generator))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, k, D) and y (..., B, k), k at most K -> (..., B, k): every y predicted from the pairs before it."""
        if self._one and by_onednn(x):  # one member keeps a CPU busy, and oneDNN has no batches of products
            names, weights = zip(*self.named_parameters(), strict=True)
            each = zip(y, *(weight.unbind() for weight in weights), strict=True)
            one = self._one[0]
            return torch.stack([functional_call(one, dict(zip(names, of, strict=True)), (x, own)) for own, *of in each])
        x = x.expand(*y.shape, -1)
        tokens = torch.stack([F.pad(x, (1, 0)), F.pad(y[..., None], (0, x.shape[-1]))], -2)  # (..., B, k, 2, D + 1)
        tokens = tokens.flatten(-3, -2)[..., :-1, :]  # (..., B, T = 2k - 1, D + 1)
        length = tokens.shape[-2]
        h = self.embed(tokens) + self.positions[..., None, :length, :]  # (..., B, T, d)
        *layers, last = self.layers
        for layer in layers:
            h = layer(h)
        places = torch.arange(length, device=h.device)
        h = last(h, places <= places[::2, None])  # (..., B, k, d)
        return self.readout(self.norm(h))[..., 0]

    def flops(self) -> float:
        """Floating-point operations of one prompt of K pairs, forward and backward."""
        c, T = self.config, 2 * self.config.K - 1
        everywhere, branches = 2 * 3 * c.d_model**2, 2 * (c.d_model**2 + 2 * c.d_model * c.d_mlp)
        full = T * (everywhere + branches) + 2 * T * T * c.d_model  # causal: half of 4 T^2 d
        last = T * everywhere + c.K * branches + 2 * T * c.K * c.d_model
        ends = 2 * c.d_model * (T * (c.D + 1) + c.K)
        return 3.0 * ((c.n_layers - 1) * full + last + ends)
