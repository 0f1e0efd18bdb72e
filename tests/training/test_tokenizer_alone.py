"""A language model made from a tokenizer alone: its checkpoint loads without one."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from zoo.llama import LlamaLM
from zoo.revdeq import RevDEQLM
from zoo.tokenizers import load_tokenizer

MODELS = {
    "LlamaLM": (LlamaLM, {"dim": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 16}),
    "RevDEQLM": (RevDEQLM, {"hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}),
}


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_of_a_model_made_from_a_tokenizer_loads(name, tmp_path):
    cls, sizes = MODELS[name]
    module = cls(tokenizer=load_tokenizer("bytes"), warmup_steps=1, **sizes)
    tokens = torch.randint(257, (4, 9))
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=2)
    trainer.fit(module, loader, loader)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = cls.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.tokenizer.vocab_size == 257
    assert torch.equal(loaded.eval()(tokens), module.eval()(tokens))
