"""Random tables: their functions, their rows as texts, and streams that depend on the place in the run only."""

import csv
from itertools import chain

import numpy as np
import pytest

from tests.resume import assert_resume_is_bitwise
from zoo.datamodules.synthetic_tables import BLOCK, SyntheticTables
from zoo.datamodules.table_functions import RandomTable
from zoo.datamodules.text_regression import TextRegression
from zoo.errors import UserError
from zoo.regress_lm import RegressLM

SMALL = {"n_tables": 20, "max_columns": 4, "batch_size": 16, "seed": 3}


def test_the_function_of_a_table_is_standardised_and_its_noise_is_as_drawn():
    for seed in range(10):
        table = RandomTable("t", seed)
        _, features = table._draw_features(4000, np.random.default_rng(1))
        values = table._function(features)
        assert abs(values.mean()) < 0.15
        assert values.std() == pytest.approx(1, abs=0.25)
        if table._link == "identity":
            _, targets = table.rows(0, 4000)
            spread = np.hypot(1, table._noise)
            assert np.std(targets / table._scale) == pytest.approx(spread, rel=0.25)


def test_a_term_that_is_constant_in_the_rows_of_its_statistics_is_not_divided_by_its_rounding():
    table = RandomTable("t", 184)  # one of its terms is constant and not 0
    assert min(deviation for _, deviation in table._statistics) > 1e-3


def test_kinds_of_columns_and_terms_all_occur():
    tables = [RandomTable("t", seed) for seed in range(40)]
    kinds = {column.kind for table in tables for column in table.columns}
    assert kinds == {"normal", "uniform", "log", "integer", "power", "category"}
    assert {table._link for table in tables} == {"identity", "log", "bounded"}
    assert any(table._missing.any() for table in tables)
    scales = [c.scale for table in tables for c in table.columns if c.kind in ("normal", "uniform", "log")]
    assert min(scales) < 1e-3
    assert max(scales) > 1e4


def test_a_tree_term_and_a_linear_term_have_the_values_of_their_formulas():
    from zoo.datamodules import table_functions

    random = np.random.default_rng(0)
    x = random.normal(size=(50, 3))
    columns, importance = np.arange(3), np.full(3, 1 / 3)
    linear = table_functions._linear(columns, importance, np.random.default_rng(1))
    weights = np.random.default_rng(1).normal(size=3) / 3
    np.testing.assert_allclose(linear(x), x @ weights)
    trees = table_functions._trees(columns, importance, np.random.default_rng(1))(x)
    assert len(np.unique(trees)) <= 16**4
    tree = np.random.default_rng(1)
    depth, n_trees = int(tree.integers(2, 5)), int(tree.integers(1, 5))
    split = tree.choice(columns, p=importance, size=(n_trees, depth))
    thresholds, leaves = 0.8 * tree.normal(size=(n_trees, depth)), tree.normal(size=(n_trees, 2**depth))
    by_hand = [
        sum(leaves[t, sum(2**d * (row[split[t, d]] > thresholds[t, d]) for d in range(depth))] for t in range(n_trees))
        for row in x
    ]
    np.testing.assert_allclose(trees, by_hand)


def test_rows_are_rendered_as_those_of_a_table_in_a_file(tmp_path):
    data = SyntheticTables(**SMALL)
    table = next(t for t in data.tables if t._missing.any())
    cells, targets = (part[:8] for part in table.rows(0, BLOCK))
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*cells[0], "y"])
        writer.writeheader()
        writer.writerows({**row, "y": target} for row, target in zip(cells, targets, strict=True))
    settings = {"target_columns": "y", "tokenizer": "words", "round_digits": 2, "power_tokens": True}
    read = TextRegression(str(tmp_path), **settings, val_fraction=0.0, test_fraction=0.0)
    rows = read.dataset("train")
    generated = data.dataset("val")
    own = [row for row in map(generated.__getitem__, range(len(generated))) if row.text in rows.texts]
    assert len(own) == 8
    for row in own:
        i = rows.texts.index(row.text)
        assert row.targets == (read.targets("train")[i, 0],)
        words = [data.tokenizer.decode([t]).strip() for t in row.tokens]
        assert words == [read.tokenizer.decode([t]).strip() for t in rows[i].tokens]


def test_a_row_depends_on_its_place_only_and_every_table_takes_part():
    data, other = SyntheticTables(**SMALL), SyntheticTables(**SMALL)
    rows = data.dataset("train")
    backwards = [other.dataset("train")[i] for i in reversed(range(320))]
    assert [rows[i] for i in range(320)] == backwards[::-1]
    assert len({(rows[i].text, rows[i].targets) for i in range(1000)}) > 980  # training rows are new ones
    assert {rows[i].text.partition("c")[0] for i in range(160)} == {f"t{i}" for i in range(20)}
    assert rows[0] != SyntheticTables(**SMALL | {"seed": 4}).dataset("train")[0]
    held_out = data.dataset("val")
    texts = {held_out[i].text for i in range(len(held_out))}
    assert not texts & {rows[i].text for i in range(1000) if "." in rows[i].text}
    assert held_out[5] == SyntheticTables(**SMALL | {"seed": 4}).dataset("val")[5]


def test_workers_and_ranks_divide_the_rows(monkeypatch):
    def first_batches(n, rank=(0, 1), **options):
        data = SyntheticTables(**SMALL | options)
        monkeypatch.setattr(data, "rank_and_ranks", lambda: rank)
        batches = iter(data.train_dataloader())
        return [next(batches).index.tolist() for _ in range(n)]

    alone = first_batches(4, batch_size=32)
    assert list(chain(*alone)) == list(range(128))
    ranks = [first_batches(4, (rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone
    assert first_batches(2, num_workers=2) == first_batches(2)


def test_resume_within_an_epoch_is_bitwise(tmp_path):
    sizes = {"vocab_size": SyntheticTables(**SMALL).vocab_size, "dim": 16, "n_heads": 2, "n_encoder_layers": 1}
    assert_resume_is_bitwise(
        lambda: RegressLM(**sizes, number_digits=3, warmup_steps=2),
        lambda: SyntheticTables(**SMALL),
        tmp_path,
        every=3,
        max_steps=6,
        limit_val_batches=0,
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"n_tables": 0}, "--data.n_tables"),
        ({"max_columns": 1}, "--data.max_columns must be from 2 to 64"),
        ({"round_digits": 4}, "--data.round_digits must be from 1 to 3"),
        ({"n_val": 12}, "--data.n_val must be a multiple of 8"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(option, said):
    with pytest.raises(UserError, match=said):
        SyntheticTables(**option)


def test_predict_is_refused():
    with pytest.raises(UserError, match="are not predicted"):
        SyntheticTables(**SMALL).setup("predict")
