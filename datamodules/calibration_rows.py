"""Rows on which a model calibrates intervals, for tables with too few validation rows."""

import math

import numpy as np

from zoo.datamodules.regression_rows import RegressionRows
from zoo.datamodules.rows import TextRows
from zoo.tokenizers import Tokenizer
from zoo.training.batches import Row

ENOUGH_ROWS = 300  # validation rows; a share of .5 of 300 rows has a standard deviation of .03


def calibration_rows(source: RegressionRows, dataset: TextRows, tokenizer: Tokenizer, seed: int) -> list[Row]:
    """Validation rows and new synthetic rows, each several times with targets that the teacher draws.

    The few validation rows of a small table do not suffice to calibrate intervals on their targets. The teacher knows
    from cross-validation on all training rows how far predictions are from targets. Copies of a row have its index.

    Args:
        source: the table and its teacher.
        dataset: the validation rows.
        tokenizer: tokenizer of the texts.
        seed: seed of the teacher.

    Returns:
        No rows if the data is without synthetic rows, or if the validation rows suffice.
    """
    if not source.settings.synthetic_rows or len(dataset) >= ENOUGH_ROWS:
        return []
    teacher, reader = source.teacher(seed), source.reader
    rows = reader.rows("val")
    cells = {place: cells for tables in reader.tables.values() for table in tables for place, cells in table.rows}
    by_text = {text: cells[place] for text, place in zip(rows.texts, rows.places, strict=True)}
    synthetic = teacher.draw_other(ENOUGH_ROWS // 2)
    texts, ids, used, numbers = source.encode_texts([reader.layout.text(row) for row in synthetic], tokenizer)
    features = np.array(numbers, dtype=np.float32) if source.settings.features else None
    others = TextRows(texts, ids, np.empty((len(used), 0)), features)
    # Half of the targets come from validation rows.
    drawn: list[Row] = []
    for part, part_cells, first_index in (
        (dataset, [by_text[text] for text in dataset.texts], 0),
        (others, [synthetic[i] for i in used], len(dataset)),
    ):
        targets = teacher.draw_targets(part_cells, math.ceil(ENOUGH_ROWS / len(part))) if len(part) else None
        for i, copies in enumerate([] if targets is None else targets.tolist()):
            drawn += [part[i]._replace(targets=tuple(y), index=first_index + i) for y in copies]
    return drawn
