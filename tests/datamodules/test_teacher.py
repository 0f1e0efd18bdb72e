"""Synthetic rows: mixed cells, labels of a teacher that predicts well, real rows in other splits, errors."""

import csv
import json
from collections import Counter

import numpy as np
import pytest

from tests.resume import assert_resume_is_bitwise
from zoo.datamodules import TextRegression, teacher_models
from zoo.datamodules.column_warnings import warn_of_words
from zoo.datamodules.table_columns import CategoryColumn, NumberColumn, TextColumn, read_column
from zoo.datamodules.teacher import Teacher
from zoo.datamodules.teacher_models import Ensemble, TargetScale
from zoo.datamodules.text_scores import TextScores
from zoo.errors import UserError
from zoo.regress_lm import RegressLM
from zoo.tokenizers.byte_level import ByteTokenizer

COLORS = ("red", "green", "blue")


def make_rows(n, seed=0):
    """Rows whose target is 10 size + 5 (color is red); one size in ten is missing and counts as 0.5."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        size, color = round(random.random(), 2), COLORS[i % 3]
        missing = random.random() < 0.1
        y = 10 * (0.5 if missing else size) + 5 * (color == "red") + 0.1 * random.normal()
        rows.append({"size": "" if missing else f"{size:.2f}", "color": color, "group": f"g{i // 3}", "y": f"{y:.3f}"})
    return rows


def write(file, rows):
    with file.open("w", encoding="utf-8", newline="") as content:
        writer = csv.DictWriter(content, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


@pytest.fixture(autouse=True)
def small_ensembles(monkeypatch):
    monkeypatch.setattr(teacher_models, "N_TREES", 30)
    monkeypatch.setattr(teacher_models, "N_COMPARED_TREES", 10)
    monkeypatch.setattr(teacher_models, "MOST_FOLDS", 2)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table") / "small.csv", make_rows(90))


def open_table(file, **settings):
    options = {"target_columns": "y", "columns": "size,color", "tokenizer": "words", "seed": 0}
    return TextRegression(file, **{**options, **settings})


def test_kinds_of_columns():
    assert isinstance(read_column(["1", 2.5, "", "1e3"], 0.1), NumberColumn)
    assert isinstance(read_column(["1", "a", "1", "a"], 0.1), CategoryColumn)
    assert isinstance(read_column([True, False, True, None, False], 0.1), CategoryColumn)
    assert isinstance(read_column(["a b", "c d", "e f", "a b"], 0.1), TextColumn)
    assert isinstance(read_column(["", None, "?"], 0.1), TextColumn)
    assert read_column(["0.01", "1", "?", "10"], 0.1).encode(["0.01", "", "x"])[:, 0].tolist() == pytest.approx(
        [np.log(0.01), np.nan, np.nan], nan_ok=True
    )
    assert CategoryColumn(["a", "b", "b"]).encode(["b", "a", "c"]).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_drawn_numbers_are_near_their_source_and_written_as_the_column_is():
    random, source = np.random.default_rng(0), np.arange(1000) % 4
    numbers = NumberColumn(["1.50", "2.25", "", "3.00"], 0.1)
    drawn = numbers.draw(source, random)
    assert {drawn[i] for i in range(2, 1000, 4)} == {""}
    assert all(len(cell.partition(".")[2]) == 2 for cell in drawn if cell)
    noise = np.array([float(cell) - 1.5 for cell in drawn[::4]])
    assert noise.std() == pytest.approx(0.1 * np.std([1.5, 2.25, 3]), rel=0.15)
    assert all(float(cell) > 0 for cell in NumberColumn(["1e-5", "3e-4", "0.1"], 0.5).draw(source % 3, random))
    assert set(NumberColumn([0, 1, 1], 0.5).draw(source % 3, random)) == {0, 1}  # a switch


@pytest.mark.parametrize(
    "y", [[1.0, 2, 3, 4], [1.0, 10, 100, 1e4], [-1.0, 0, 0, 0, 0, 0, 0, 90], [5.0, 5, 5], [-1e300, 0, 1e300]], ids=str
)
def test_target_scale_inverts_and_never_leaves_the_range(y):
    y = np.array(y)
    scale = TargetScale(y)
    assert scale.inverse(scale(y)) == pytest.approx(y)
    assert scale.inverse(np.array([-99.0, 99.0])) == pytest.approx([y.min(), y.max()])


def test_ensemble_prefers_ridge_where_the_target_is_linear_and_its_draws_cover_the_targets():
    random = np.random.default_rng(0)
    x, new = random.normal(size=(120, 6)), random.normal(size=(500, 6))
    weights = np.arange(1, 7)
    y = x @ weights + random.normal(size=120)
    ensemble = Ensemble(x, np.stack([y, -2 * y], axis=1), [str(i) for i in range(120)], seed=0)
    assert (ensemble.choice.smooth, ensemble.choice.weight, str(ensemble)) == ("ridge", 1.0, "ridge regression")
    # The noise is as large everywhere, as that of single trees is not.
    assert (ensemble.choice.noise, ensemble.choice.scale) == ("residuals", 0.0)
    predicted = ensemble.predict(new)
    assert np.corrcoef(predicted[:, 0], new @ weights)[0, 1] > 0.98
    assert predicted[:, 1] == pytest.approx(-2 * predicted[:, 0], abs=2)
    draws = np.stack([ensemble.sample(new, random)[:, 0] for _ in range(40)])
    truth = new @ weights + random.normal(size=500)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    assert 0.85 < np.mean((low <= truth) & (truth <= high)) < 0.95


def test_mixed_trees_are_half_extra_trees_and_half_a_random_forest():
    random = np.random.default_rng(0)
    inputs, z = random.random((40, 3)), random.normal(size=(40, 2))
    extra, forest, both = (teacher_models._fit_trees(kind, 10, 0, inputs, z) for kind in ("extra", "forest", "both"))
    new = random.random((20, 3))
    expected = teacher_models._predict_by_tree([*extra[:5], *forest[:5]], new, 2)
    assert np.array_equal(teacher_models._predict_by_tree(both, new, 2), expected)
    assert expected.shape == (20, 2, 10)


def test_noise_of_an_ensemble_has_the_size_and_shape_of_the_errors():
    """Errors that grow with an input; the share of targets in the interval of draws holds for small and large ones."""
    random = np.random.default_rng(0)
    x, new = random.uniform(size=(400, 2)), random.uniform(size=(2000, 2))
    y, truth = (part[:, 0] + (0.02 + part[:, 1]) * random.normal(size=len(part)) for part in (x, new))
    ensemble = Ensemble(x, y[:, None], [str(i) for i in range(400)], seed=0)
    draws = np.stack([ensemble.sample(new, random)[:, 0] for _ in range(60)])
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    is_inside = (low <= truth) & (truth <= high)
    assert is_inside.mean() == pytest.approx(0.9, abs=0.05)
    assert is_inside[new[:, 1] > 0.8].mean() > 0.75
    assert (high - low)[new[:, 1] > 0.8].mean() > 1.5 * (high - low)[new[:, 1] < 0.2].mean()


def test_scores_of_texts_are_learned_from_few_of_them_and_never_from_the_text_itself():
    random = np.random.default_rng(0)
    values = {"good": 1.0, "bad": -1.0, "great": 2.0, "awful": -2.0, "the": 0.0, "film": 0.0, "was": 0.0, "plot": 0.0}

    def make_texts(n):
        words = [random.choice([*values], size=6) for _ in range(n)]
        return [" ".join(row) for row in words], np.array([[sum(map(values.get, row))] for row in words])

    (texts, y), (new, truth) = make_texts(300), make_texts(300)
    rows = [{"text": text, "id": f"row {i}"} for i, text in enumerate(texts)]
    teacher = Teacher(rows, ["text", "id"], y, [str(i) for i in range(300)], seed=0)
    predicted = teacher.predict([{"text": text, "id": "row x"} for text in new])
    assert np.abs(predicted - truth).mean() < 0.2 * np.abs(truth - truth.mean()).mean()
    # Drawn texts are made of words of the column, most of them new, and labelled by these words.
    cells, labels = teacher.draw(500)
    drawn = [cell["text"] for cell in cells]
    assert {word for text in drawn for word in text.split()} == {*values}
    assert 0.1 < np.mean([text in texts for text in drawn]) < 0.5
    assert np.corrcoef(labels[:, 0], [sum(values[word] for word in text.split()) for text in drawn])[0, 1] > 0.9
    # Targets that have nothing to do with the texts get scores near their mean.
    scores = TextScores(texts, random.normal(size=(300, 1)), np.arange(300), seed=0)
    assert np.abs(scores.left_out).mean() < 0.5
    assert TextScores(["a b", ""] * 6, np.arange(12.0)[:, None], np.zeros(12), 0).left_out == pytest.approx(5.5)


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_drawn_targets_of_new_rows_deviate_as_unseen_targets_do(noise, monkeypatch):
    """Shares below the drawn quantiles: with 200 rows left out their standard deviation is at most .037."""
    monkeypatch.setattr(teacher_models, "MOST_FOLDS", 5)
    random = np.random.default_rng(0)
    x, new = random.normal(size=(200, 3)), random.normal(size=(2000, 3))
    truth, unseen = (np.sin(2 * a[:, 0]) * 4 + a[:, 1] + noise * random.normal(size=len(a)) for a in (x, new))
    ensemble = Ensemble(x, np.stack([truth, -truth], 1), [str(i) for i in range(200)], seed=0)
    drawn = ensemble.draw_targets(new, 40, random)
    assert drawn.shape == (2000, 40, 2)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    for sign, draws in ((1, drawn[..., 0]), (-1, drawn[..., 1])):
        quantiles = np.quantile(draws, levels, axis=1, method="weibull")
        assert (sign * unseen < quantiles).mean(1) == pytest.approx(levels, abs=0.08)
    # The two numbers of a draw belong to the same row that was left out.
    assert np.corrcoef(drawn[:, :, 0].ravel(), drawn[:, :, 1].ravel())[0, 1] < -0.95


def test_calibration_rows_are_validation_rows_with_drawn_targets(table, monkeypatch):
    assert open_table(table).calibration_rows == []
    data = open_table(table, synthetic_rows=50)
    rows, held_out, train = data.calibration_rows, data.dataset("val"), set(data.texts("train"))
    copies = {i: [row for row in rows if row.index == i] for i in range(len(held_out) + 150)}
    assert sum(map(len, copies.values())) == len(rows)
    assert len(copies[0]) == -(-300 // len(held_out))
    assert all(len({(row.text, *row.tokens) for row in part}) == 1 for part in copies.values())
    # Validation rows, then 150 synthetic ones that are not trained on.
    for i in range(len(held_out)):
        assert copies[i][0][2:4] == held_out[i][2:4]
        assert copies[i][0].tokens == held_out[i].tokens
        drawn = np.array([row.targets for row in copies[i]])[:, 0]
        assert len(set(drawn.tolist())) > 5
        assert np.abs(np.median(drawn) - held_out[i].targets[0]) < 2.5  # the targets range from 0 to 15
    assert [len(copies[len(held_out) + i]) for i in range(150)] == [2] * 150
    assert sum(copies[len(held_out) + i][0].text in train for i in range(150)) < 90
    assert rows == open_table(table, synthetic_rows=50).calibration_rows
    monkeypatch.setattr("zoo.datamodules.calibration_rows.ENOUGH_ROWS", len(held_out))
    assert open_table(table, synthetic_rows=50).calibration_rows == []


def test_teacher_predicts_new_rows_of_a_table_with_categories_and_missing_cells():
    rows, new = make_rows(90), make_rows(300, seed=1)
    y, truth = (np.array([[float(row["y"])] for row in part]) for part in (rows, new))
    teacher = Teacher(rows, ["size", "color"], y, [row["group"] for row in rows], seed=0)
    assert np.abs(teacher.predict(new) - truth).mean() < 0.6  # the targets' mean deviation is 3
    cells, labels = teacher.draw(2000)
    assert labels.shape == (2000, 1)
    assert np.abs(teacher.predict(cells) - labels).mean() < 1
    # Less noise: the same rows, with labels nearer to the median of their distribution.
    same, median = teacher.draw(2000, 0.0)
    assert same == cells
    less = teacher.draw(2000, 0.25)[1]
    is_near = np.isclose(less - median, 0.25 * (labels - median), atol=0.011)  # labels are rounded
    assert is_near.mean() > 0.99  # a few labels are limited to the range of the targets
    # Cells are mixed: the color says nothing about the size.
    assert {cell["color"] for cell in cells} == set(COLORS)
    assert len({(cell["size"], cell["color"]) for cell in cells}) > 250
    again = Teacher(rows, ["size", "color"], y, [row["group"] for row in rows], seed=0).draw(2000)
    assert again[0] == cells
    assert np.array_equal(again[1], labels)


def test_share_of_mixed_cells_differs_between_synthetic_rows():
    # 30 pairs of equal rows, whose eight cells determine each other.
    n_pairs, names = 30, list("abcdefgh")
    rows = [{name: f"{name}{i // 2}" for name in names} for i in range(2 * n_pairs)]
    y = np.arange(2.0 * n_pairs)[:, None]
    cells = Teacher(rows, names, y, [str(i) for i in range(len(rows))], seed=0).draw_other(20_000)
    counts = [Counter(value[1:] for value in row.values()).most_common(1)[0][1] for row in cells]
    # A cell comes from another pair with a probability that is uniform on [0, most].
    most = 0.5 * (n_pairs - 1) / n_pairs
    unmixed = (1 - (1 - most) ** 9) / (9 * most)
    assert np.mean(np.equal(counts, 8)) == pytest.approx(unmixed, abs=0.01)
    assert np.mean(np.less(counts, 6)) > 0.2


def test_only_the_training_split_has_synthetic_rows_and_they_depend_on_the_seed(table):
    plain, data = open_table(table), open_table(table, synthetic_rows=300)
    n = len(plain.texts("train"))
    assert len(data.texts("train")) == n + 300
    assert data.texts("train")[:n] == plain.texts("train")
    assert data.targets("train")[:n].tolist() == plain.targets("train").tolist()
    for split in ("val", "test", "predict"):
        assert data.texts(split) == plain.texts(split)
        assert data.targets(split).tolist() == plain.targets(split).tolist()
    # All words of the synthetic texts are known to the tokenizer.
    assert 0 not in data.dataset("train")[n + 7].tokens
    again, other = open_table(table, synthetic_rows=300), open_table(table, synthetic_rows=300, seed=1)
    assert again.texts("train") == data.texts("train")
    assert np.array_equal(again.targets("train"), data.targets("train"))
    assert again.state_dict() == data.state_dict()
    assert other.texts("train")[:n] == data.texts("train")[:n]
    assert other.texts("train") != data.texts("train")


def test_teacher_sees_neither_validation_nor_test_rows(tmp_path):
    """Targets of rows in other splits differ by 1,000, and no label does."""
    rows = make_rows(90)
    file = write(tmp_path / "a.csv", rows)
    inside = {*open_table(file, columns="size,color,group").texts("train")}
    for row in rows:
        if f"size: {row['size']}, color: {row['color']}, group: {row['group']}".replace("size: , ", "") not in inside:
            row["y"] = "1000"
    data = open_table(write(tmp_path / "b.csv", rows), synthetic_rows=500)
    assert data.targets("val").min() == data.targets("test").min() == 1000
    assert data.targets("train").max() < 20


def test_synthetic_rows_of_several_objectives_with_copies_features_and_groups(tmp_path):
    rows = [{"a": i, "b": i % 7, "y": i, "z": -i, "g": i % 20} for i in range(1, 81)]
    options = {"target_columns": "y,z", "columns": "a,b", "group_column": "g", "features": True}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = open_table(str(tmp_path / "a.jsonl"), **options, synthetic_rows=200, augment_copies=1, number_formats=True)
    n = len(data.reader.rows("train").texts)
    assert data.targets("train").shape == (2 * n + 200, 2)
    assert data.features("train").shape == (2 * n + 200, 2)
    y, z = data.targets("train")[2 * n :].T
    assert np.corrcoef(y, z)[0, 1] < -0.9
    assert np.corrcoef(y, data.features("train")[2 * n :, 0])[0, 1] > 0.9
    assert all(cell.lstrip("-").isdigit() for cell in data.texts("train")[-1].replace("a: ", "").split(", b: "))


def test_rounding_that_makes_a_column_constant_is_reported(tmp_path, capsys):
    rows = [{"year": 1931 + i % 3, "size": i, "y": i + 10 * (i % 3)} for i in range(60)]
    file = write(tmp_path / "a.csv", rows)
    for digits, is_reported, n_rows in ((2, True, 50), (2, True, 0), (4, False, 50), (None, False, 0)):
        open_table(file, columns="year,size", round_digits=digits, synthetic_rows=n_rows).texts("train")
        message = "the numbers in column year are all equal after rounding: raise --data.round_digits"
        assert capsys.readouterr().err.count(message) == is_reported


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "None", "-", "NaN", "n.a.", " na "])
def test_words_for_a_missing_number_keep_a_column_of_numbers(word, capsys):
    column = read_column(["1", word, "3", 4.5], 0.1)
    assert isinstance(column, NumberColumn)
    np.testing.assert_array_equal(column.encode([word, "2"])[:, 0], [np.nan, 2])
    warn_of_words([{"x": cell} for cell in ["1", word, "3", 4.5, 5]], ["x"])
    assert not capsys.readouterr().err


def test_a_column_of_nearly_only_numbers_is_reported_with_the_word_in_it(tmp_path, capsys):
    rows = [{"size": "about 5" if i == 7 else i, "kind": "NA" if i % 3 else "b", "y": i} for i in range(60)]
    open_table(write(tmp_path / "a.csv", rows), columns="size,kind", val_fraction=0, test_fraction=0).texts("train")
    error = capsys.readouterr().err
    assert "1 of the 60 values in column size is no number, such as 'about 5', and the column is read as words" in error
    assert "kind" not in error
    # A name such as NA stays a category among words.
    assert read_column([row["kind"] for row in rows], 0.1).encode(["NA", "b", ""]).sum(axis=1).tolist() == [1, 1, 0]


def test_long_synthetic_rows_are_left_out_or_truncated(table):
    options = {"synthetic_rows": 200, "tokenizer": "bytes"}
    longest = int(open_table(table, tokenizer="bytes").lengths("train").max()) - 1
    data = open_table(table, **options, max_input_len=longest, long_rows="skip")
    assert data.lengths("train").max() <= longest
    assert len(data.texts("train")) < 270
    data = open_table(table, **options, max_input_len=longest, long_rows="truncate")
    assert data.lengths("train").max() == longest
    assert len(data.texts("train")) == 272


class Closed(ByteTokenizer):
    """Bytes with a special token behind each text, which remains when a text is truncated."""

    def _encode_batch(self, texts):
        return [[*ids, self.eos_id] for ids in super()._encode_batch(texts)]

    def truncated(self, ids, limit):
        return ids if len(ids) <= limit else [*ids[: limit - 1], self.eos_id]


def test_truncated_synthetic_rows_keep_the_special_token_behind_them(table):
    data = open_table(table, synthetic_rows=50, tokenizer="bytes", max_input_len=12, long_rows="truncate")
    data.tokenizer = Closed()
    rows = data.dataset("train")
    assert rows.lengths.max() == 12
    assert {row.tokens[-1] for row in rows} == {Closed.eos_id}


def test_data_without_a_table_refuse_synthetic_rows(tmp_path):
    file = write(tmp_path / "a.csv", [{"a": "", "b": "?", "c": str(i), "y": str(i)} for i in range(30)])
    with pytest.raises(UserError, match=r"--data\.synthetic_rows needs a column with values, but a, b are empty"):
        TextRegression(file, target_columns="y", columns="a,b", bad_rows="skip", synthetic_rows=100).source.teacher(0)
    file = write(tmp_path / "b.csv", make_rows(9))
    with pytest.raises(UserError, match=r"synthetic_rows needs at least 10 training rows, not"):
        open_table(file, synthetic_rows=100, batch_size=2).setup("fit")
    with pytest.raises(UserError, match=r"--data\.synthetic_rows must be at least 0, not -1"):
        TextRegression(synthetic_rows=-1)


def test_prediction_fits_no_teacher(table, monkeypatch):
    data = open_table(table, synthetic_rows=300, tokenizer="bytes")
    monkeypatch.setattr(Teacher, "__init__", lambda *_: pytest.fail("a teacher was fitted"))
    for stage in ("validate", "test", "predict"):
        data.setup(stage)
    assert data.vocab_size == 257
    assert data.n_objectives == 1


def test_resumed_run_repeats_the_synthetic_rows(table, tmp_path):
    """A resumed run draws the same rows, and reads the checkpoint's tokenizer."""

    def make_data():
        return open_table(table, synthetic_rows=60, batch_size=8, seed=None)

    def make_module():
        return RegressLM(tokenizer=make_data().tokenizer, dim=16, n_heads=2, warmup_steps=1)

    assert_resume_is_bitwise(make_module, make_data, tmp_path, every=2, max_steps=4, limit_val_batches=0)


def test_rows_far_from_each_other_are_mixed_more():
    def most_mixed(cells, groups=None):
        names = list(cells[0])
        targets = np.arange(len(cells), dtype=float)[:, None]
        return Teacher(cells, names, targets, groups or [str(i) for i in range(len(cells))], 0, "fast").most_mixed

    random = np.random.default_rng(0)
    pairs = [{"a": i // 2 % 10, "b": f"kind {i // 2 % 3}", "c": i // 2} for i in range(40)]  # each row twice
    assert most_mixed(pairs) == 0.5
    # The twins count as one group: a row's closest other row has one of three cells in common.
    assert most_mixed(pairs, [str(i // 2) for i in range(40)]) == 1
    assert most_mixed([dict(zip("abcd", random.normal(size=4), strict=True)) for _ in range(30)]) == 1
    assert most_mixed(pairs, ["one"] * 40) == 0.5
