"""RegressLM.from_data: chosen settings, training, calibration and reproducibility without the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.cards import run_example
from tests.commands import ROOT
from zoo.cli.checkpoint_info import read_checkpoint_info
from zoo.cli.command_line import ZooCLI
from zoo.console.argument_names import with_argument_names
from zoo.datamodules import TextRegression, teacher_models
from zoo.errors import UserError
from zoo.regress_lm import ExampleInput, RegressLM
from zoo.regress_lm.from_data import train_on_data
from zoo.training.random_streams import derive, global_seed

SMALL = {"dim": 16, "num_samples": 8, "val_samples": 4}


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_models, "N_TREES", 20)
    monkeypatch.setattr(teacher_models, "N_COMPARED_TREES", 10)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "y"), *((i, i % 7 + 0.5, i / 10) for i in range(1, 81))])
    return str(tmp_path / "table.csv")


def test_model_of_a_table_has_the_chosen_settings_and_repeats(table, tmp_path):
    def train():
        data = TextRegression(table, target_columns="y", synthetic_rows=300)
        return RegressLM.from_data(data, max_steps=8, progress=False, **SMALL)

    model = train()
    h = model.hparams
    # Chosen by the rules, given to the model, given to the data.
    assert (h["optimizer"], h["round_digits"], h["power_tokens"]) == ("muon", 2, True)
    assert (h["dim"], h["n_heads"], h["num_samples"]) == (16, 1, 8)
    assert h["warmup_steps"] == 1
    assert model.temperatures is not None
    assert not model.training
    inputs = [ExampleInput("a: 40, b: 5.5"), ExampleInput("a: 3, b: 3.5")]
    quantiles = model.quantiles(inputs, 16, seed=0)
    assert quantiles.shape == (2, 5)
    assert np.array_equal(train().quantiles(inputs, 16, seed=0), quantiles)
    model.save(tmp_path / "model.ckpt")
    assert np.array_equal(RegressLM.load(tmp_path / "model.ckpt").quantiles(inputs, 16, seed=0), quantiles)


def test_arguments_given_as_nothing_are_kept(table):
    data = TextRegression(table, target_columns="y", synthetic_rows=0, augment_copies=0, power_tokens=False)
    _, used = train_on_data(RegressLM, data, 0, 1, False, {**SMALL, "residual_dropout": 0.0})
    assert (used.hparams["synthetic_rows"], used.hparams["augment_copies"]) == (0, 0)
    assert used.hparams["power_tokens"] is False
    assert used.hparams["round_digits"] is not None  # chosen
    assert len(used.dataset("train")) == 64


def test_example_of_the_card(table, monkeypatch):
    folder = Path(table).parent
    rows = [(n % 10 + 1, city, 1000 * (n % 10 + 1) + 7919 * n % 997) for n, city in enumerate(["Bonn", "Kyiv"] * 20)]
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([("rooms", "city", "price"), *rows])
    monkeypatch.setattr("zoo.regress_lm.defaults.SYNTHETIC_ROWS", 200)
    original = RegressLM.from_data
    small = {"max_steps": 4, "progress": False, **SMALL}
    monkeypatch.setattr(RegressLM, "from_data", lambda data: original(data, **small))
    names = run_example(ROOT / "zoo" / "regress_lm" / "README.md", folder, "### Tables in Python")
    assert names["text"] == "rooms: 3, city: Bonn"
    assert names["low"] <= names["median"] <= names["high"]


def test_row_text_is_the_text_that_a_model_reads(table):
    data = TextRegression(table, target_columns="y")
    assert data.row_text({"y": 1, "b": 5.5, "a": 40}) == "a: 40, b: 5.5"
    assert data.row_text({"a": 40, "b": None}) == data.row_text({"a": "40"}) == "a: 40"
    assert data.row_text({"a": 1, "b": 1.5}) in data.texts("train") + data.texts("val") + data.texts("test")
    with pytest.raises(UserError, match="all of a, b are empty in it"):
        data.row_text({"y": 1})
    with pytest.raises(UserError, match=r"the table has no column 'A'.*: name columns as it does, a, b"):
        data.row_text({"A": 1, "b": 5.5})


def test_misspelt_columns_name_the_nearest_one(tmp_path):
    (tmp_path / "house.csv").write_text("rooms,city,agent,price\n" + "3,Bonn,x,4\n" * 20)
    data = TextRegression(str(tmp_path / "house.csv"), target_columns="price", group_column="agent")
    assert data.row_text({"rooms": 3, "agent": "x", "price": 4}) == "rooms: 3"
    with pytest.raises(UserError, match=r"no column 'Rooms' \(did you mean 'rooms'\?\): name columns .*, rooms, city$"):
        data.row_text({"Rooms": 3, "city": "Bonn"})


def test_saved_model_predicts_rows_as_it_was_trained(table, tmp_path):
    data = TextRegression(table, target_columns="y", synthetic_rows=20, row_format="json", columns="b,a")
    model = RegressLM.from_data(data, max_steps=8, progress=False, **SMALL)
    model.save(tmp_path / "model.ckpt")
    # A model that was loaded is stored with the same settings.
    RegressLM.load(tmp_path / "model.ckpt").save(tmp_path / "again.ckpt")
    (tmp_path / "rows.csv").write_text("b,a\n5.5,40\n3.5,3\n")
    (tmp_path / "with_target.csv").write_text("a,y,b\n40,1,5.5\n3,2,3.5\n")
    texts = ['{"b": 5.5, "a": 40}', '{"b": 3.5, "a": 3}']
    seed = derive(global_seed(), "predict")
    expected = model.quantiles([ExampleInput(text) for text in texts], 8, seed=seed)[:, 2]
    for checkpoint, rows in (("model", "rows"), ("again", "with_target")):
        out = tmp_path / f"{checkpoint}-{rows}"
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", f"--output_dir={out}"]
        ZooCLI(["predict", f"--ckpt_path={tmp_path / checkpoint}.ckpt", f"--data_dir={tmp_path / rows}.csv", *quiet])
        predicted = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        assert [row["input"] for row in predicted] == texts
        assert [row["median"] for row in predicted] == expected.tolist()


def test_columns_of_a_table_are_printed_where_no_option_names_them(table, capsys):
    message = "table.csv: the texts are made of all columns, a, b, y: if one is the target, name it with"
    for options, is_printed in (
        ({}, True), ({"target_columns": "target1,target2"}, True), ({"target_columns": "y"}, False),
        ({"columns": "a,b"}, False), ({"text_column": "a"}, False),
    ):  # fmt: skip
        TextRegression(table, **options).dataset("predict")
        assert (message in capsys.readouterr().err) == is_printed


def test_options_that_change_the_texts_of_a_trained_model(table, tmp_path):
    data = TextRegression(table, target_columns="y", round_digits=2, power_tokens=True)
    assert data.reader.layout.columns == ["a", "b"]
    model = RegressLM.from_scratch(1024, dim=16, n_heads=1, hidden_dim=16, round_digits=2, power_tokens=True)
    model.stored_data_settings = dict(data.hparams)
    checkpoint = tmp_path / "model.ckpt"
    model.save(checkpoint)
    (tmp_path / "rows.csv").write_text("a,c\n40,5.5\n")
    command = ["predict", f"--ckpt_path={checkpoint}", f"--data_dir={table}", f"--output_dir={tmp_path / 'out'}"]
    for option, message in (
        ("row_format=json", "'json', but the model in .* was trained with 'key_value': drop --data.row_format"),
        ("round_digits=4", "4, but the model in .* was trained with 2: drop --data.round_digits"),
        ("power_tokens=false", "False, but the model in .* was trained with True: drop --data.power_tokens"),
    ):
        with pytest.raises(UserError, match=message):
            ZooCLI([*command, f"--data.{option}"])
    with pytest.raises(UserError, match="no column 'b', which the model was trained with: add it to the file"):
        ZooCLI([*command, f"--data_dir={tmp_path / 'rows.csv'}"])
    info = read_checkpoint_info(str(checkpoint))
    assert info.check_texts(TextRegression, {"columns": "a, b", "row_format": "key_value"}) is None
    warning = info.check_texts(TextRegression, {"columns": "a"})
    assert warning.startswith("--data.columns is 'a', but the model was trained with ['a', 'b']: its predictions are")


def test_data_with_copies_uses_the_best_weights(table):
    data = TextRegression(table, target_columns="y", synthetic_rows=0, augment_copies=2, target_jitter=0.1)
    model = RegressLM.from_data(data, max_steps=12, progress=False, seed=1, number_digits=3, **SMALL)
    assert model.temperatures is not None
    assert len(model.sample([ExampleInput("a: 40, b: 5.5")], 3)[0]) == 3


def test_refusals(table):
    data = TextRegression(table, target_columns="y", synthetic_rows=20)
    for settings, message in (
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"dim": -1}, "dim"),
        ({"dim": "64"}, "dim must be a whole number, such as 64, not '64'"),
        ({"dim": None}, "dim must be"),
        ({"n_decoder_layers": 1.5}, "n_decoder_layers must be"),
        ({"lr": "0.1"}, "lr must be a number, not '0.1'"),
        ({"dimm": 3}, "has no argument 'dimm'; did you mean dim"),
        ({"digits": 3}, "number_digits"),
        ({"round_digits": 3}, "round_digits follows from the data"),
    ):
        with pytest.raises(UserError, match=message):
            RegressLM.from_data(data, **{"max_steps": 2, **settings})
    with pytest.raises(UserError, match="no column 'z'"):
        RegressLM.from_data(TextRegression(table, target_columns="z"))
    with pytest.raises(UserError, match="has no texts with numbers"):
        RegressLM.from_data("table.csv")


def test_messages_name_arguments(tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text("a,y\n" + "".join(f"{i},{1.7e9 + i}\n" for i in range(60)))
    options = {"target_columns": "y", "synthetic_rows": 0, "augment_copies": 0, "batch_size": 8}
    with pytest.warns(UserWarning, match=r"distinct.*: set number_digits=10$"):
        RegressLM.from_data(
            TextRegression(str(path), **options),
            max_steps=1,
            progress=False,
            number_digits=4,
            number_exponent=1,
            **SMALL,
        )
    assert "cut off at random (val_fraction)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"fewer than the 999 of one step .*: set batch_size to at most 48$"):
        RegressLM.from_data(TextRegression(str(path), **options | {"batch_size": 999}), max_steps=1, **SMALL)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("set --model.number_format ieee --model.number_digits 10", "set number_format=ieee number_digits=10"),
        ("--data.val_fraction 1 --data.test_fraction 0 takes all", "val_fraction=1 test_fraction=0 takes all"),
        ("lower --data.val_fraction and --data.test_fraction", "lower val_fraction and test_fraction"),
        ("set --data.max_input_len to at most 5", "set max_input_len to at most 5"),
        ("fix it, or set --data.bad_rows skip", "fix it, or set bad_rows=skip"),
        ("give --ckpt_path a.ckpt", "give --ckpt_path a.ckpt"),
    ],
)
def test_options_as_arguments(message, expected):
    assert with_argument_names(message) == expected
