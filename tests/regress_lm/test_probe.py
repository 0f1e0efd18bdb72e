"""The shortcut probe: it distinguishes a model that reads the text from one that does not."""

import csv
import os

import numpy as np
import pytest
import torch

from zoo.__main__ import main as zoo
from zoo.errors import UserError
from zoo.regress_lm import Example, RegressLM
from zoo.regress_lm.probe import COLUMNS, changes, probe, read_pairs, write_pairs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Profit rises by 3.5 percent", {"number": "Profit rises by 7 percent"}),
        ("It is good", {"negation": "It is not good"}),
        ("It is never good", {"negation": "It is good"}),
        ("X1: -12", {"number": "X1: -24"}),
        ("It was 0 then", {"number": "It was 1 then", "negation": "It was not 0 then"}),
        ("Nothing to change", {}),
    ],
)
def test_changes_are_minimal(text, expected):
    assert dict(changes(text)) == expected


class Reader(RegressLM):
    """Predicts the number in the text, or always `fixed`."""

    def __init__(self, fixed=None):
        self.fixed, self.n_objectives = fixed, 1

    def sample(self, inputs, num_samples, **options):
        return [np.full(num_samples, float(x.x.split()[-1]) if self.fixed is None else self.fixed) for x in inputs]


def test_probe_detects_a_shortcut_that_accuracy_hides():
    pairs = [
        {"text": f"now {i}", "target": 1.0, "change": "number", "changed": f"now {2 * i}", "changed_target": 2.0 * i}
        for i in (1, 1, 1, 5)
    ]
    reads, guesses = (probe(model, pairs, tolerance=0.0)[-1] for model in (Reader(), Reader(fixed=1.0)))
    assert guesses["accuracy"] == "1.000"
    assert guesses["accuracy, changed"] == "0.000"
    assert guesses["same"] == "1.000"
    assert reads["accuracy"] == "0.750"
    assert reads["accuracy, changed"] == "1.000"
    assert reads["same"] == "0.000"


def test_a_model_of_several_targets_is_refused():
    """The median of the samples of all targets together would be compared with the first target."""
    model = RegressLM.from_scratch(max_input_len=8, dim=16, n_heads=2, n_objectives=2)
    pairs = [{"text": "1", "target": 1.0, "change": "number", "changed": "2", "changed_target": 2.0}]
    with pytest.raises(UserError, match="the probe measures models of one target, and this one has 2"):
        probe(model, pairs, tolerance=0.0, num_samples=2)


def test_pairs_are_written_filled_in_and_measured(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("text,y\n" + "".join(f"it is {i},{i}\n" for i in range(40)))
    model = RegressLM.from_scratch(max_input_len=32, dim=16, n_heads=2)
    model.fine_tune([Example("it is 1", 1.0)], max_epochs=1, progress=False)
    model.save(tmp_path / "model.ckpt")
    options = ["--data=TextRegression", "--data.text_column=text", "--data.target_columns=y", "--trainer.max_epochs=1"]
    weights = ["--model=RegressLM", "--model.dim=16", "--model.n_heads=2", "--trainer.log_every_n_steps=1"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--model.val_samples=1"]
    run = [f"--data_dir={tmp_path / 'data.csv'}", f"--output_dir={tmp_path / 'run'}", "--data.batch_size=8"]
    assert zoo(["fit", *weights, *options, *quiet, *run]) == 0
    found = write_pairs(str(tmp_path / "run" / "best.ckpt"), tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match="exists already"):
        write_pairs(str(tmp_path / "run" / "best.ckpt"), tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match="no row with a changed_target"):
        read_pairs(tmp_path / "pairs.csv")
    rows = list(csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines()))
    assert len(rows) == found == 8
    assert list(rows[0]) == list(COLUMNS)
    with (tmp_path / "filled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row | {"changed_target": "7"} for row in rows)
    table = probe(model, read_pairs(tmp_path / "filled.csv"), tolerance=0.5, num_samples=3)
    assert [row["change"] for row in table] == ["number", "negation", "all"]
    assert table[-1]["pairs"] == "8"


def test_bad_pairs_are_refused_by_number(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("text,target\na,1\n")
    with pytest.raises(ValueError, match="has no column 'change'"):
        read_pairs(path)
    path.write_text(",".join(COLUMNS) + "\na,1,number,b,high\n")
    header = ",".join(COLUMNS) + "\n"
    for content, sentence in (
        ("a,1,number,b,high\n", "line 2: its target 'changed_target' is 'high', not a number; fix it$"),
        ("a,1_8,number,b,2\n", "line 2: its target 'target' is '1_8', not a number"),
        ("a,inf,number,b,2\n", "line 2: its target 'target' is inf, not a finite number"),
        ("a,1,number,b,2\na,1,number,b\n", "line 3: it has 4 fields, not the 5 of the columns"),
        ('a,1,number,"b,2\n', "line 2: a quote in this row is never closed"),
        ("a,1,number,\xe9,2\n", "line 2: byte 0xe9 in it is not UTF-8"),
    ):
        path.write_text(header + content, encoding="latin-1")
        with pytest.raises(UserError, match=sentence):
            read_pairs(path)
    path.write_text("text," + header + "a,a,1,number,b,2\n")
    with pytest.raises(UserError, match="two columns are called 'text'"):
        read_pairs(path)
    path.write_text(
        f"\ufeff{header}a,1,number,{'b ' * 100_000},-2.5\n", encoding="utf-8"
    )  # long, with a byte-order mark
    [pair] = read_pairs(path)
    assert (pair["text"], pair["target"], pair["changed_target"]) == ("a", 1.0, -2.5)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a pipe"):
        read_pairs(path)


def test_a_checkpoint_of_other_data_has_no_pairs(tmp_path):
    torch.save({"state_dict": {}, "TextLM": {}, "datamodule_hyper_parameters": {}}, tmp_path / "llama.ckpt")
    with pytest.raises(UserError, match=r"llama\.ckpt stores no data settings of texts with numbers"):
        write_pairs(str(tmp_path / "llama.ckpt"), tmp_path / "pairs.csv")
    assert not (tmp_path / "pairs.csv").exists()
