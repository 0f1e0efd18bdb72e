"""A pretrained encoder of the transformers library in place of RegressLM's own: frozen, adapted or trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import UserError, check_choice
from zoo.files.cache_folder import cache_folder
from zoo.layers.lora import add_lora
from zoo.regress_lm.encoders import count_weights, digest, encoder_from_config, load_encoder, longest_input
from zoo.regress_lm.state_cache import StateCache
from zoo.tokenizers import Tokenizer, load_tokenizer
from zoo.tokenizers.encoder_tokenizer import PREFIX, EncoderTokenizer

EncoderMode = Literal["frozen", "lora", "full"]


class PretrainedEncoder(nn.Module):
    """An encoder of transformers, a norm, and a linear map of its states to `dim`.

    State dicts hold the encoder's weights in the mode "full" only. In the other modes they hold the weights that are
    trained, and the encoder is identified by `digest`.

    Args:
        encoder: returns `last_hidden_state` (B, T, width).
        dim: width of the decoder.
        mode: "frozen" computes states without gradients or dropout; "lora" trains low-rank updates of the encoder's
            matrices; "full" trains all of its weights.
        lora_rank: rank of the updates in the mode "lora".
        lora_alpha: the update is multiplied by lora_alpha / lora_rank.
        dropout: dropout probability of the states before the linear map.
    """

    def __init__(
        self,
        encoder: Any,
        dim: int,
        mode: EncoderMode = "frozen",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("encoder_mode", mode, ("frozen", "lora", "full"))
        self.mode = mode
        self.cache: StateCache | None = None  # where states of a frozen encoder are stored; None to compute them anew
        self.width: int = encoder.config.get_text_config().hidden_size
        self.vocab_size = encoder.get_input_embeddings().num_embeddings
        self.longest_input = longest_input(encoder)
        self.digest = digest(encoder) if mode != "full" else ""
        self.pretrained = encoder.train()  # transformers loads models for evaluation
        self.pretrained.keeps_dtype = mode == "frozen"  # its states, which are stored, are fp32 in every precision
        if mode == "lora":
            add_lora(self.pretrained, lora_rank, lora_alpha)
        for name, parameter in self.pretrained.named_parameters():
            is_update = mode == "lora" and name.endswith((".0.a", ".0.b"))
            parameter.requires_grad_(mode == "full" or is_update)
        self.norm = nn.LayerNorm(self.width)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(self.width, dim)
        if mode != "full":
            self.register_state_dict_post_hook(_drop_frozen)
            self.register_load_state_dict_pre_hook(_add_frozen)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The memory (B, T, dim) of tokens (B, T); mask (B, 1, 1, T) is True at tokens, None without padding."""
        padding_mask = None if mask is None else mask[:, 0, 0]
        states = self.states(tokens, padding_mask).to(self.norm.weight.dtype)
        return self.project(self.dropout(self.norm(states)))

    def states(self, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The encoder's hidden states (B, T, width) of tokens (B, T)."""
        if self.mode != "frozen":
            return self._run(tokens, padding_mask)
        # Without dropout, and in fp32 in every precision, so that stored states do not depend on either.
        is_training = self.pretrained.training
        self.pretrained.eval()
        try:
            with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
                return self._run(tokens, padding_mask) if self.cache is None else self._cached(tokens, padding_mask)
        finally:
            self.pretrained.train(is_training)

    def _run(self, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        mask = torch.ones_like(tokens) if padding_mask is None else padding_mask.long()
        return self.pretrained(input_ids=tokens, attention_mask=mask).last_hidden_state

    @torch.compiler.disable
    def _cached(self, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        """`_run`, with the states of texts in `cache` read from there and those of all others added to it."""
        assert self.cache is not None
        lengths = [tokens.shape[1]] * len(tokens) if padding_mask is None else padding_mask.sum(1).tolist()
        texts = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        states = self.cache.read(texts)
        # Encode the texts that are missing as one batch.
        missing = [i for i, known in enumerate(states) if known is None]
        if missing:
            some = None if padding_mask is None else padding_mask[missing]
            computed = self._run(tokens[missing], some)
            new = [computed[row, : lengths[i]] for row, i in enumerate(missing)]
            self.cache.write([texts[i] for i in missing], new)
            for i, values in zip(missing, new, strict=True):
                states[i] = values
        known = [values.to(tokens.device) for values in states if values is not None]
        return nn.utils.rnn.pad_sequence(known, batch_first=True)

    def multiplications(self, length: int) -> float:
        """Multiplications of training on a text of `length` tokens, in passes of which three make a training step."""
        # A frozen encoder's states are computed once; low-rank updates need no gradient of the matrices.
        passes = {"frozen": 0, "lora": 2 / 3, "full": 1}[self.mode]
        return length * (passes * count_weights(self.pretrained) + self.width * self.project.out_features)


def _drop_frozen(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Remove from a state dict what is not trained."""
    for name in _frozen(module):
        state.pop(f"{prefix}pretrained.{name}", None)


def _add_frozen(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add to a state dict that is loaded the module's own tensors that are not trained."""
    for name, tensor in _frozen(module).items():
        state.setdefault(f"{prefix}pretrained.{name}", tensor)


def _frozen(module: Any) -> dict[str, Tensor]:
    """The tensors of the pretrained encoder that are not trained."""
    trained = {name for name, parameter in module.pretrained.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in module.pretrained.state_dict().items() if name not in trained}


def states_folder() -> Path:
    """Folder of the states of frozen encoders: in $ZOO_CACHE, else in ~/.cache/zoo."""
    return cache_folder() / "encoder_states"


def check_same(checkpoint: Mapping[str, Any], encoder: PretrainedEncoder, name: str | None) -> None:
    """Raises UserError if a checkpoint was trained on another encoder than this one, loaded from `name`."""
    stored = checkpoint.get("encoder_digest", encoder.digest)
    if stored != encoder.digest:
        raise UserError(
            f"the encoder in {name} has the digest {encoder.digest}, but the checkpoint was trained on {stored}: "
            "give the path of the right one with --model.encoder"
        )


def pretrained_encoder(
    name: str | None,
    description: str | None,
    config: Any,
    mode: EncoderMode,
    lora_rank: int,
    lora_alpha: float,
    tokenizer: Tokenizer | None,
) -> PretrainedEncoder | None:
    """The encoder at `name`, or with the configuration `description`; it lowers `config.max_input_len` to its own.

    Without either, no pretrained encoder is used and the result is None.

    Args:
        name: a folder, or the name of a model on the hub.
        description: the JSON text of a configuration, used where it is not None.
        config: the settings of the model, of which sizes, optimizer and dropout are read.
        mode: how the encoder is trained.
        lora_rank: rank of its updates in the mode "lora", else 0.
        lora_alpha: factor of its updates.
        tokenizer: tokenizer of the texts; None if it is not known yet.

    Raises:
        UserError: the encoder cannot be loaded, or contradicts other settings.
    """
    if not name and not description:
        if mode != "frozen":
            raise UserError(
                f"encoder_mode {mode} needs a pretrained encoder: add --model.encoder, or drop --model.encoder_mode"
            )
        return None
    # Settings that contradict the mode.
    if mode == "lora" and not lora_rank:
        raise UserError("encoder_mode lora needs the rank of the updates: set --model.lora_rank, to 8 for example")
    if mode != "lora" and lora_rank:
        raise UserError(f"lora_rank {lora_rank} has no effect with encoder_mode {mode}: set --model.encoder_mode lora")
    if mode != "frozen" and config.optimizer == "muon":
        raise UserError("optimizer muon updates new matrices only: choose adamw, or --model.encoder_mode frozen")
    # The tokens must be those that the encoder was trained with.
    remedy = f"set --data.tokenizer {PREFIX}{name}"
    if tokenizer is not None and tokenizer.kind != EncoderTokenizer.kind:
        raise UserError(f"the encoder {name} reads the tokens of its own tokenizer: {remedy}")
    if tokenizer is not None and name:
        own = load_tokenizer(f"{PREFIX}{name}")
        if tokenizer.fingerprint != own.fingerprint:
            raise UserError(f"the tokenizer {tokenizer.source} is not the one of the encoder {name}: {remedy}")
    network = encoder_from_config(description) if description else load_encoder(name or "")
    encoder = PretrainedEncoder(network, config.dim, mode, lora_rank, lora_alpha, config.residual_dropout)
    if config.vocab_size > encoder.vocab_size:
        raise UserError(
            f"the tokenizer has {config.vocab_size} tokens, but the encoder {name} {encoder.vocab_size}: {remedy}"
        )
    config.max_input_len = min(config.max_input_len, encoder.longest_input or config.max_input_len)
    return encoder
