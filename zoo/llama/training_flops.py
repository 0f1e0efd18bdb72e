"""Floating-point operations of a training step of the classifier, by what is trained."""

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from zoo.llama.model import Llama


def training_flops(model: Llama, head: nn.Linear, batch: int, seq_len: int, scores_tokens: bool) -> float:
    """Floating-point operations of one training sample, forward and backward.

    A matrix of n parameters takes 2 n per token in the forward pass, 2 n for its gradient if it is trained, and 2 n for
    the gradient of its input if anything before it is trained; an update by LoRA takes its own products once per batch.
    Attention takes 4 d T per token and layer in the forward pass and twice as many in the backward pass, as if every
    position saw all T positions. The embeddings are looked up. The vectors of norms count as matrices, as in
    `Llama.flops_per_token`.

    Args:
        model: the network; parameters that are trained require a gradient.
        head: linear map of one pooled vector per sample.
        batch: samples of the batch, B.
        seq_len: tokens of a sample, T.
        scores_tokens: whether the logits of the next tokens are computed at each position.
    """
    per_token, per_batch = 0, 0
    is_reached = model.tok_embeddings.weight.requires_grad  # whether the gradient of the next input is needed

    def multiply(module: Any) -> int:
        """Operations of one vector's product with the module's weight."""
        nonlocal is_reached, per_batch
        parameters = list(module.parameters())
        is_trained = any(parameter.requires_grad for parameter in parameters)
        size = module.weight.numel()
        if parametrize.is_parametrized(module):
            # W + B A, A (r, in): 2 r n forward, 4 r n backward.
            per_batch += 6 * module.parametrizations.weight[0].a.shape[0] * size
        products = 1 + is_trained + is_reached
        is_reached |= is_trained
        return 2 * size * products

    layers: Any = model.layers
    for layer in layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        per_token += multiply(layer.attention_norm) + multiply(attention.wqkv)
        per_token += (12 if is_reached else 4) * model.config.dim * seq_len
        for module in (attention.wo, layer.ffn_norm, feed_forward.w13, feed_forward.w2):
            per_token += multiply(module)
    per_token += multiply(model.norm)
    # Both maps read the hidden states, all except the last token's for the next tokens.
    before_head, scores = is_reached, 0
    if scores_tokens:
        scores = multiply(model.tok_embeddings if model.config.tie_embeddings else model.output)
    is_reached = before_head
    return seq_len * per_token + (seq_len - 1) * scores + multiply(head) + per_batch / batch
