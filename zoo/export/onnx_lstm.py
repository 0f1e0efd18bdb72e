"""One LSTM direction as an operator that torch.export keeps, and as the ONNX node that it becomes.

torch.export would unroll torch.nn.LSTM for the length of the example. The weights have torch's order of gates: input,
forget, cell, output.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@torch.library.custom_op("zoo::lstm", mutates_args=())
def lstm(x: Tensor, input_weight: Tensor, state_weight: Tensor, input_bias: Tensor, state_bias: Tensor) -> Tensor:
    """The states (B, T, H) of x (B, T, n): weights (4 H, n) and (4 H, H), biases (4 H,) each."""
    with torch.device("meta"):
        module = nn.LSTM(input_weight.shape[1], state_weight.shape[1], batch_first=True)
    weights = dict(zip(NAMES, (input_weight, state_weight, input_bias, state_bias), strict=True))
    return functional_call(module, weights, x)[0].clone()


@lstm.register_fake
def _(x: Tensor, input_weight: Tensor, state_weight: Tensor, input_bias: Tensor, state_bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], state_weight.shape[1])


def translations() -> dict[Any, Any]:
    """The table for torch.onnx.export: the operator -> a function that writes its ONNX nodes."""
    from onnxscript import opset18

    op: Any = opset18

    def in_onnx_order(matrix: Any) -> Any:
        # ONNX has the gates input, output, forget, cell.
        entry, forget, cell, output = op.Split(matrix, num_outputs=4, axis=0)
        return op.Concat(entry, output, forget, cell, axis=0)

    def write(x: Any, input_weight: Any, state_weight: Any, input_bias: Any, state_bias: Any) -> Any:
        first = op.Constant(value_ints=[0])
        weights = [op.Unsqueeze(in_onnx_order(matrix), first) for matrix in (input_weight, state_weight)]
        biases = op.Concat(in_onnx_order(input_bias), in_onnx_order(state_bias), axis=0)
        rows = op.Transpose(x, perm=[1, 0, 2])  # (T, B, n)
        states, _, _ = op.LSTM(rows, *weights, op.Unsqueeze(biases, first), hidden_size=int(state_weight.shape[1]))
        return op.Transpose(op.Squeeze(states, op.Constant(value_ints=[1])), perm=[1, 0, 2])  # (B, T, H)

    return {torch.ops.zoo.lstm.default: write}
