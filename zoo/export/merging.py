"""Low-rank updates are merged into the weights before an export, so that it needs no other file."""

from typing import Any

from torch.nn.utils import parametrize

from zoo.layers.lora import merge_lora


def merge_updates(module: Any) -> None:
    """Merge the low-rank updates of a module's network, and change its settings to those of the merged weights.

    A RegressLM with a pretrained encoder keeps its updates, which its checkpoints store without the encoder's weights.

    Args:
        module: a LightningModule of the zoo; changed in place.
    """
    if getattr(module, "pretrained_encoder", None) is not None:
        return
    if any(parametrize.is_parametrized(part) for part in module.model.modules()):
        merge_lora(module.model)
        if "lora_rank" in module.hparams and not hasattr(module, "stores_adapter_only"):
            module.hparams["lora_rank"] = 0
    if getattr(module, "stores_adapter_only", False):  # a LlamaClassifier
        module.stores_adapter_only = False
        module.hparams.update({"method": "full", "base": None})
