"""The GPU parts of the benchmarks: smaller batches where memory ends, and the error of reversible gradients."""

from functools import partial

import pytest
import torch

from benchmarks import revdeq
from benchmarks.gpu import with_smaller_batches


def test_a_batch_is_halved_until_it_fits():
    tried = []

    def run(batch, most=9):
        tried.append(batch)
        if batch > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 10 * batch

    assert with_smaller_batches(run, 32) == (80, {"batch": 8, "halved_from": 32})
    assert tried == [32, 16, 8]
    assert with_smaller_batches(run, 9) == (90, {"batch": 9})
    with pytest.raises(torch.cuda.OutOfMemoryError):
        with_smaller_batches(lambda batch: run(batch, most=0), 3)


def test_the_error_of_reversible_gradients():
    sizes = {
        "vocab_size": 31,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 12,
    }
    model = revdeq.build(**sizes)
    tokens = revdeq.text(model, 2, 11)

    def error(state_dtype):
        autocast = partial(torch.autocast, "cpu", enabled=False)
        return revdeq.exactness(model, tokens, autocast, "f", max_steps=4, state_dtype=state_dtype)["error"]

    assert error(torch.float64) < 1e-6 < error(torch.float32) < 1e-3
