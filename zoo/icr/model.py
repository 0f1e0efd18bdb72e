"""A transformer that reads examples (x, y) of a linear regression and predicts each y from the examples before it.

Raventós et al. 2023, https://arxiv.org/abs/2306.15063: GPT-2 (Radford et al. 2019) over tokens of D + 1 numbers,
x_k as [0, x_k] and y_k as [y_k, 0]. The prediction of y_k is the output at the token of x_k. Positions are learned; the
input and output projections are without bias. Departures, none of which changes a prediction:
- the last token, y_K, is not computed, because no prediction depends on it;
- at y positions the last layer computes only keys and values.

With `members` one module holds several networks of the same shape, each with its own weights.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from zoo.errors import UserError, check_counts, check_positive
from zoo.icr.task import Task
from zoo.layers.attention import attend
from zoo.layers.linear import is_eager_cpu_fp32, linear


@dataclass
class ICRegConfig(Task):
    """The task and the network that learns it.

    Args:
        d_model: width of the residual stream, a multiple of n_heads.
        d_mlp: width of the hidden layer in each MLP, at least 1.
        n_heads: number of attention heads, a divisor of d_model.
        n_layers: number of blocks, at least 1.
        use_prenorm: LayerNorm before each branch and once at the end, as in GPT-2; false: after each branch.
        init_std: standard deviation of the initial weights, positive. GPT-2's 0.02 suits long runs; a narrow network
            that should learn within a thousand steps starts better from about 0.1.

    Raises:
        UserError: a setting is outside its range, or n_heads does not divide d_model.
    """

    d_model: int = 512
    d_mlp: int = 512
    n_heads: int = 4
    n_layers: int = 3
    use_prenorm: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(d_model=self.d_model, d_mlp=self.d_mlp, n_heads=self.n_heads, n_layers=self.n_layers)
        if self.d_model % self.n_heads:
            raise UserError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        check_positive("init_std", self.init_std)


class Linear(nn.Module):
    """Affine map, x (..., B, T, n) -> (..., B, T, m); with members x, weight and bias have a leading axis S."""

    def __init__(self, n: int, m: int, members: tuple[int, ...], bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*members, m, n))
        self.bias = nn.Parameter(torch.zeros(*members, m)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return linear(x, self.weight, self.bias)
        # Members: one batched product for all.
        rows, weight = x.flatten(1, -2), self.weight.mT  # (S, B T, n), (S, n, m)
        out = rows @ weight if self.bias is None else torch.baddbmm(self.bias[:, None], rows, weight)
        return out.unflatten(1, x.shape[1:-1])


class LayerNorm(nn.Module):
    """Layer normalization: (x - mean) / sqrt(variance + 1e-5) * weight + bias."""

    def __init__(self, n: int, members: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(*members, n)), nn.Parameter(torch.zeros(*members, n))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        return torch.addcmul(self.bias[:, None, None], F.layer_norm(x, x.shape[-1:]), self.weight[:, None, None])


class Block(nn.Module):
    """Transformer block: self-attention and an MLP, each a branch of the residual stream."""

    def __init__(self, config: ICRegConfig, members: tuple[int, ...]) -> None:
        super().__init__()
        self.n_heads, self.prenorm = config.n_heads, config.use_prenorm
        self.norm1, self.norm2 = LayerNorm(config.d_model, members), LayerNorm(config.d_model, members)
        self.qkv = Linear(config.d_model, 3 * config.d_model, members)
        self.proj = Linear(config.d_model, config.d_model, members)
        self.up = Linear(config.d_model, config.d_mlp, members)
        self.down = Linear(config.d_mlp, config.d_model, members)

    def attention(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Causal self-attention, h (..., B, T, d) -> (..., B, T, d); with a mask (K, T) at positions 0, 2, ... only."""
        # Project to queries, keys and values; with a mask only the tokens of x need queries.
        q, k, v = self.qkv(h).unflatten(-1, (3, self.n_heads, -1)).unbind(-3)  # (..., B, T, H, hd)
        q = q if mask is None else q[..., ::2, :, :]
        # Members become additional rows of the batch.
        query, key, value = (part.flatten(0, -4).transpose(1, 2) for part in (q, k, v))  # (... B, H, T, hd)
        mixed = attend(query, key, value, causal=mask is None, mask=mask)  # (... B, H, T or K, hd)
        return self.proj(mixed.transpose(1, 2).reshape(*q.shape[:-2], q.shape[-2] * q.shape[-1]))

    def mlp(self, h: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(h), approximate="tanh"))

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """h (..., B, T, d) -> (..., B, T, d); with a mask (K, T) the outputs at positions 0, 2, ... only."""
        # The residual stream continues only at positions whose output is needed.
        residual = h if mask is None else h[..., ::2, :]
        if self.prenorm:
            residual = residual + self.attention(self.norm1(h), mask)
            return residual + self.mlp(self.norm2(residual))
        residual = self.norm1(residual + self.attention(h, mask))
        return self.norm2(residual + self.mlp(residual))


class Network(nn.Module):
    """The transformer; with `members`, that many of them in one module, their weights stacked along the first axis.

    Args:
        config: sizes of the task and of the network.
        members: number S of stacked networks; None: a single network without that axis.
    """

    def __init__(self, config: ICRegConfig, members: int | None = None) -> None:
        super().__init__()
        self.config = config
        # Stacked members have a leading axis S in every weight.
        axis = () if members is None else (members,)
        with torch.device("meta"):
            # The code of one member, without weights; in a list, so that it is not registered as a submodule.
            self._single: list[nn.Module] = [] if members is None else [Network(config)]
        self.embed = Linear(config.D + 1, config.d_model, axis, bias=False)
        self.positions = nn.Parameter(torch.empty(*axis, 2 * config.K, config.d_model))
        self.layers = nn.ModuleList(Block(config, axis) for _ in range(config.n_layers))
        self.norm = LayerNorm(config.d_model, axis) if config.use_prenorm else nn.Identity()
        self.readout = Linear(config.d_model, 1, axis, bias=False)
        self.initialize(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights as GPT-2 does: N(0, init_std^2), with the last matrix of each branch scaled down by
        sqrt(2 n_layers). All members start from the same weights.
        """
        # 2 n_layers branches add to the residual stream: scaled so, its variance does not grow with depth.
        branch_scale = 1 / math.sqrt(2 * self.config.n_layers)
        for name, p in self.named_parameters():
            if "norm" not in name and "bias" not in name:
                std = self.config.init_std * (branch_scale if "proj" in name or "down" in name else 1)
                p.copy_(std * torch.randn(p.shape[-2:], generator=generator, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions (..., B, k) of y (..., B, k) from x (B, k, D), k at most K; each from the pairs before it.

        Raises:
            UserError: D or the number of places differs from the config's.
        """
        if x.ndim < 2 or x.shape[-1] != self.config.D or x.shape[:-1] != y.shape[-x.ndim + 1 :]:
            raise UserError(
                f"x and y must have shapes (B, k, D = {self.config.D}) and (B, k), not {tuple(x.shape)} and "
                f"{tuple(y.shape)}"
            )
        if not 1 <= x.shape[-2] <= self.config.K:
            raise UserError(f"a prompt has 1 to K = {self.config.K} places in this model, not {x.shape[-2]}")
        # On a CPU one member uses all of the processor, and batched products are not faster: compute them one by one.
        if self._single and is_eager_cpu_fp32(x):
            names, weights = zip(*self.named_parameters(), strict=True)
            each = zip(y, *(weight.unbind() for weight in weights), strict=True)
            single = self._single[0]
            outputs = [functional_call(single, dict(zip(names, own, strict=True)), (x, y_own)) for y_own, *own in each]
            return torch.stack(outputs)  # (S, B, k)
        # Interleave the tokens [0, x_k] and [y_k, 0]; the last y is not read.
        x = x.expand(*y.shape, -1)
        tokens = torch.stack([F.pad(x, (1, 0)), F.pad(y[..., None], (0, x.shape[-1]))], -2)  # (..., B, k, 2, D + 1)
        tokens = tokens.flatten(-3, -2)[..., :-1, :]  # (..., B, T = 2k - 1, D + 1)
        length = tokens.shape[-2]
        h = self.embed(tokens) + self.positions[..., None, :length, :]  # (..., B, T, d)
        # All layers but the last compute every position, the last one only those of x.
        *layers, last = self.layers
        for layer in layers:
            h = layer(h)
        position = torch.arange(length, device=h.device)
        h = last(h, position <= position[::2, None])  # (..., B, k, d)
        return self.readout(self.norm(h))[..., 0]

    def flops(self) -> float:
        """Floating-point operations of training on one prompt of K pairs, forward and backward."""
        # Per position: keys, values and queries everywhere, and the rest of a block where its output is needed.
        c, T = self.config, 2 * self.config.K - 1
        everywhere, branches = 2 * 3 * c.d_model**2, 2 * (c.d_model**2 + 2 * c.d_model * c.d_mlp)
        full = T * (everywhere + branches) + 2 * T * T * c.d_model  # causal: half of 4 T^2 d
        last = T * everywhere + c.K * branches + 2 * T * c.K * c.d_model
        # Embedding of T tokens and readout of K predictions; the backward pass costs twice the forward pass.
        ends = 2 * c.d_model * (T * (c.D + 1) + c.K)
        return 3.0 * ((c.n_layers - 1) * full + last + ends)
