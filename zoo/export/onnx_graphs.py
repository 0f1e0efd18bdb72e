"""The graphs of each model for ONNX: a module with tensors as inputs and outputs, example inputs, dynamic axes."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.export import onnx_lstm
from zoo.training.language_model import LanguageModel


class Graph(NamedTuple):
    """One graph to export.

    Args:
        name: name of the file, without its suffix.
        module: maps the inputs to one output.
        inputs: makes example inputs of a batch size and a length.
        axes: for each input the names of its dynamic axes, by number: "batch" or "length".
        input_names: one name per input.
        output_name: name of the output.
        longest: the largest length; None for a graph without a length.
    """

    name: str
    module: nn.Module
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    axes: tuple[dict[int, str], ...]
    input_names: tuple[str, ...]
    output_name: str
    longest: int | None


class Call(nn.Module):
    """A function of a module as the `forward` of another one.

    Args:
        owner: the module whose parameters the function uses.
        function: takes and returns tensors.
    """

    def __init__(self, owner: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def graphs_of(module: Any) -> list[Graph]:
    """The graphs of a LightningModule of the zoo, which is in evaluation mode on the CPU.

    Raises:
        UserError: the module has a setting that no graph can express.
    """
    if isinstance(module, LanguageModel):
        return [_language_model(module)]
    # Compared by name, because importing every model takes a second.
    builders = {
        "LlamaClassifier": _classifier, "ICRTransformer": _in_context, "MiniRLM": _mini_rlm, "RegressLM": _regress_lm
    }  # fmt: skip
    return next(builders[base.__name__](module) for base in type(module).__mro__ if base.__name__ in builders)


TEXT = ({0: "batch", 1: "length"}, {0: "batch", 1: "length"})  # axes of tokens and padding mask


def texts(vocab_size: int) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Makes tokens and their padding mask: the first row is full, each further one has one token less."""

    def make(batch: int, length: int) -> tuple[Tensor, Tensor]:
        tokens = torch.arange(batch * length).view(batch, length) % vocab_size
        lengths = torch.clamp(length - torch.arange(batch), min=1)
        return tokens, torch.arange(length) < lengths[:, None]

    return make


def _language_model(module: Any) -> Graph:
    config = module.model.config
    if getattr(config, "fixed_point_tol", None) is not None:
        raise UserError(
            "format onnx cannot hold a RevDEQLM with fixed_point_tol, whose number of steps depends on the text: use "
            "--format safetensors"
        )
    return Graph(
        "model",
        Call(module.model, lambda tokens: module.model(tokens)[0]),
        lambda batch, length: texts(config.vocab_size)(batch, length)[:1],
        TEXT[:1],
        ("tokens",),
        "logits",
        config.max_seq_len,
    )


def _classifier(module: Any) -> list[Graph]:
    if module.bow_features is not None:
        raise UserError(
            "format onnx cannot hold a LlamaClassifier with bow_features, which reads texts instead of tokens: use "
            "--format safetensors"
        )
    config = module.model.config

    def classify(tokens: Tensor, padding_mask: Tensor) -> Tensor:
        return module.classify(module.model.hidden(tokens), padding_mask, None)

    names = ("tokens", "padding_mask")
    graph = Graph("model", Call(module, classify), texts(config.vocab_size), TEXT, names, "logits", config.max_seq_len)
    return [graph]


def _in_context(module: Any) -> list[Graph]:
    config = module.model.config

    def prompts(batch: int, length: int) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, batch * length * config.D, dtype=torch.float32).view(batch, length, config.D)
        return x, x.sum(-1).cos()

    return [Graph("model", module.model, prompts, TEXT, ("x", "y"), "predictions", config.K)]


def _mini_rlm(module: Any) -> list[Graph]:
    config, settings = module.model.config, module.hparams
    network = copy.deepcopy(module.model)
    output = "logits" if settings["n_classes"] else "predictions"

    def in_targets_unit(outputs: Tensor) -> Tensor:
        return outputs if settings["n_classes"] else _unscaled(module.target_scale, outputs)

    if config.encoder == "mlp":
        scale = module.feature_scale

        def from_features(features: Tensor) -> Tensor:
            return in_targets_unit(network.mlp(((features - scale.centre) / scale.spread).float()))

        def features(batch: int, length: int) -> tuple[Tensor]:
            steps = torch.linspace(-2, 2, batch * config.n_features, dtype=torch.float64)
            return (scale.centre + scale.spread * steps.view(batch, -1),)

        call = Call(nn.ModuleList([network, scale, module.target_scale]), from_features)
        return [Graph("model", call, features, ({0: "batch"},), ("features",), output, None)]
    if config.encoder == "lstm":
        network.encoder = MaskedLSTM(network.encoder.lstm).eval()

    def from_tokens(tokens: Tensor, padding_mask: Tensor) -> Tensor:
        return in_targets_unit(network(tokens, padding_mask))

    call = Call(nn.ModuleList([network, module.target_scale]), from_tokens)
    longest = config.max_seq_len - (config.pooling == "cls") if config.encoder == "transformer" else None
    return [Graph("model", call, texts(config.vocab_size), TEXT, ("tokens", "padding_mask"), output, longest)]


def _unscaled(scale: Any, z: Tensor) -> Tensor:
    """`Scale.inverse`, with a sinh of exponentials, because onnxruntime has none in float64."""
    z = z.double()
    x = (z.exp() - (-z).exp()) / 2 if scale.kind == "asinh" else z
    return x * scale.spread + scale.centre


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class MaskedLSTM(nn.Module):
    """An LSTM over rows padded on the right, as x (B, T, dim) -> (B, T, width), without packed sequences.

    The backward direction reads each row reversed up to its own length, so that no padding comes before its tokens.

    Args:
        lstm: the LSTM whose weights are used.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        directions = ("", "_reverse") if lstm.bidirectional else ("",)
        self.width = lstm.hidden_size * len(directions)
        self.layers = [[f"_l{number}{suffix}" for suffix in directions] for number in range(lstm.num_layers)]
        for name, weight in lstm.named_parameters():
            self.register_buffer(name, weight.detach())

    def forward(self, x: Tensor, padding_mask: Tensor, lengths: Tensor, host_lengths: Any = None) -> Tensor:
        # Position t of a row of n tokens is exchanged with n - 1 - t; padding stays where it is.
        place = torch.arange(x.shape[1])
        opposite = lengths[:, None] - 1 - place  # (B, T)
        order = torch.where(opposite >= 0, opposite, place)[..., None]  # (B, T, 1)
        for layer in self.layers:
            states = []
            for is_backward, suffix in enumerate(layer):
                own = [getattr(self, f"{kind}{suffix}") for kind in _KINDS]
                inputs = x.gather(1, order.expand(-1, -1, x.shape[2])) if is_backward else x
                output = onnx_lstm.lstm(inputs, *own)
                states.append(output.gather(1, order.expand(-1, -1, output.shape[2])) if is_backward else output)
            x = torch.cat(states, -1)  # (B, T, width)
        return x * padding_mask[..., None]


def _regress_lm(module: Any) -> list[Graph]:
    if module.pretrained_encoder is not None:
        raise UserError(
            "format onnx cannot hold a RegressLM with a pretrained encoder of transformers: use --format safetensors"
        )
    network = module.model
    config = network.config

    def decode(numbers: Tensor, memory: Tensor, padding_mask: Tensor) -> Tensor:
        return network.decode(numbers, network.project_memory(memory), padding_mask)[0]

    def step(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens, mask = texts(config.vocab_size)(batch, length)
        numbers = torch.arange(batch * min(length, config.number_len)).view(batch, -1) % config.number_vocab_size
        memory = torch.linspace(-1, 1, tokens.numel() * config.dim, dtype=torch.float32)
        return numbers, memory.view(batch, length, -1), mask

    names = ("tokens", "padding_mask")
    longest = config.max_input_len
    encoder = Graph("encoder", Call(network, network.encode), texts(config.vocab_size), TEXT, names, "memory", longest)
    axes = ({0: "batch", 1: "number_length"}, *TEXT)
    step_names = ("number_tokens", "memory", "padding_mask")
    return [encoder, Graph("decoder", Call(network, decode), step, axes, step_names, "logits", longest)]
