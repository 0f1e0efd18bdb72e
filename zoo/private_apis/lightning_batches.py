"""Lightning's private data fetcher: the next training batches, seen before they are trained on.

Private members used: `fit_loop._data_fetcher`, its `iterator` and its list `batches`; `LightningModule._trainer`.
Written for lightning 2.6.
tests/private_apis/test_lightning_batches.py fails when one of them changes.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

from zoo.private_apis.lightning_api import training_progress


class Lookahead(Iterator):
    """An iterator whose next items can be read without taking them."""

    def __init__(self, iterator: Iterator) -> None:
        self._iterator = iterator
        self._ahead: deque[Any] = deque()
        self._is_exhausted = False

    def __next__(self) -> Any:
        if not self._ahead:
            self.peek(1)
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft()

    def peek(self, count: int) -> list[Any]:
        """The next `count` items, fewer at the end; they remain to be taken."""
        while len(self._ahead) < count and not self._is_exhausted:
            try:
                self._ahead.append(next(self._iterator))
            except StopIteration:
                self._is_exhausted = True
        return [item for item, _ in zip(self._ahead, range(count), strict=False)]


def rest_of_window(trainer: Any) -> list[Any]:
    """The batches that follow the current one in its accumulation window, as the loader yields them.

    The training loop receives them afterwards as usual. A window ends after `accumulate_grad_batches` batches, or with
    the epoch. To be called during a training step.
    """
    # `ready` counts the current batch, too.
    ready = training_progress(trainer).current.ready
    count = int(min(-ready % trainer.accumulate_grad_batches, trainer.num_training_batches - ready))
    # The fetcher has a batch in stock where the loader's length is unknown.
    fetcher = trainer.fit_loop._data_fetcher
    if not isinstance(fetcher.iterator, Lookahead):
        fetcher.iterator = Lookahead(fetcher.iterator)
    stock = fetcher.batches[:count]
    return [batch for batch, _, _ in stock + fetcher.iterator.peek(count - len(stock))]


def attached_trainer(module: Any) -> Any:
    """The module's trainer, or None; the property `trainer` raises an error instead."""
    return module._trainer


def is_window_start(trainer: Any) -> bool:
    """Whether the current training batch is the first of its accumulation window."""
    return (training_progress(trainer).current.ready - 1) % trainer.accumulate_grad_batches == 0
