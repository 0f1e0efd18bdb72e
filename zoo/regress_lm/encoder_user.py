"""RegressLM's use of pretrained encoders: settings of the data, initial weights, checkpoints, stored states."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.files.checkpoints import read_checkpoint
from zoo.regress_lm import encoders
from zoo.regress_lm.initial_weights import check_kind
from zoo.regress_lm.model import RegressLMConfig
from zoo.regress_lm.number_sampler import NumberSampler
from zoo.regress_lm.pretrained_encoder import PretrainedEncoder, check_same, states_folder
from zoo.regress_lm.state_cache import StateCache
from zoo.regress_lm.upstream_weights import load_upstream
from zoo.regress_lm.word_transfer import transfer_embedding
from zoo.tokenizers import from_state
from zoo.tokenizers.hugging_face import HuggingFaceTokenizer
from zoo.weights import find_weights


class EncoderUser(NumberSampler):
    """NumberSampler whose encoder may be pretrained; its settings are `encoder`, `encoder_lr` and `encoder_cache`."""

    @classmethod
    def data_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        encoder = settings.get("encoder")
        return encoders.data_settings(encoder) if encoder else {}

    @property
    def pretrained_encoder(self) -> PretrainedEncoder | None:
        """The pretrained encoder; None if RegressLM's own encoder is used."""
        encoder = self.model.encoder
        return encoder if isinstance(encoder, PretrainedEncoder) else None

    def encoder_settings(self) -> dict[str, Any]:
        """The settings that name a pretrained encoder in checkpoints: its full path, or with all weights none."""
        name, encoder = self.hparams["encoder"], self.pretrained_encoder
        if encoder is not None and encoder.mode == "full":
            # A checkpoint holds all weights and must not need the files of the encoder.
            return {"encoder": None, "encoder_config": encoders.configuration(encoder.pretrained)}
        if name and Path(name).expanduser().is_dir():
            return {"encoder": str(Path(name).expanduser().resolve())}  # valid in every folder
        return {}

    def read_weights(self, path: str) -> dict[str, Tensor]:
        """The module's state dict from a checkpoint of the zoo or of upstream, whose heads must be the model's."""
        path = find_weights(path)
        checkpoint = read_checkpoint(path)
        check_kind(path, checkpoint)
        if "zoo" in checkpoint:
            self._check_encoder(checkpoint)
            checkpoint = read_checkpoint(path, required=("state_dict",))
            state, settings = self._with_own_words(path, checkpoint), checkpoint.get("hyper_parameters", {})
            decoder = settings.get("n_heads", RegressLMConfig.n_heads)
            encoder = settings.get("n_encoder_heads") or decoder
        else:
            upstream = load_upstream(path)
            state = {f"model.{name}": tensor for name, tensor in upstream.state_dict().items()}
            decoder, encoder = upstream.config.n_heads, upstream.config.encoder_heads
        # No shape depends on the number of heads.
        config = self.model.config
        if (decoder, encoder) != (config.n_heads, config.encoder_heads):
            differ = encoder != decoder or config.n_encoder_heads is not None
            options = f"--model.n_heads {decoder}" + (f" and --model.n_encoder_heads {encoder}" if differ else "")
            raise UserError(
                f"{path} has {decoder} heads in the decoder and {encoder} in the encoder, but this model "
                f"{config.n_heads} and {config.encoder_heads}: set {options}"
            )
        return state

    def _with_own_words(self, path: str, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state dict of a checkpoint, its embedding for the words of the module's own tokenizer if that differs."""
        state, own, name = dict(checkpoint["state_dict"]), self.tokenizer, "model.encoder.embedding.weight"
        if "tokenizer" not in checkpoint or own is None or name not in state:
            return state
        other = from_state(checkpoint["tokenizer"])
        if other.fingerprint == own.fingerprint:
            return state
        if not isinstance(own, HuggingFaceTokenizer) or not isinstance(other, HuggingFaceTokenizer):
            kinds = f"{path} has a tokenizer of the kind {other.kind!r}, and this model one of the kind {own.kind!r}"
            words = "words" if isinstance(other, HuggingFaceTokenizer) else other.kind
            raise UserError(f"{kinds}: set --data.tokenizer to {words}, or to the path of the weights")
        state[name], _ = transfer_embedding(state[name], other.tokens, own.tokens)
        return state

    def _check_encoder(self, checkpoint: Mapping[str, Any]) -> None:
        """Raises UserError if a checkpoint was trained on another frozen encoder than the module's."""
        if (encoder := self.pretrained_encoder) is not None:
            check_same(checkpoint, encoder, self.hparams["encoder"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if (encoder := self.pretrained_encoder) is not None and encoder.digest:
            checkpoint["encoder_digest"] = encoder.digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._check_encoder(checkpoint)

    # ---- training

    def lr_scale(self, name: str) -> float:
        """encoder_lr / lr for the weights of a pretrained encoder."""
        if ".encoder.pretrained." not in name:
            return 1.0
        lr = self.optimizer_config.lr
        return self.hparams["encoder_lr"] / lr if lr else 0.0

    def on_fit_start(self) -> None:
        """Store the states of a frozen encoder on disk while training."""
        encoder = self.pretrained_encoder
        if encoder is not None and encoder.mode == "frozen" and self.hparams["encoder_cache"]:
            encoder.cache = StateCache(states_folder() / f"{encoder.digest}.sqlite", encoder.width)

    def on_fit_end(self) -> None:
        if (encoder := self.pretrained_encoder) is not None:
            encoder.cache = None

    @contextmanager
    def stored_states(self) -> Iterator[None]:
        """A context in which the states of a frozen encoder are read from disk and stored there, as while training."""
        self.on_fit_start()
        try:
            yield
        finally:
            self.on_fit_end()
