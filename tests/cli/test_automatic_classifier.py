"""`zoo fit --config llama_classifier` on a table of texts and labels, with nothing else."""

import csv
import json

import pytest
import yaml

from tests.cards import run_example
from tests.commands import ROOT
from zoo.cli.command_line import ZooCLI

QUIET = [
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"),
]
CONFIG = f"--config={ROOT / 'configs' / 'llama_classifier.yaml'}"


@pytest.fixture
def table(tmp_path):
    """200 texts of three classes; two rows in ten are noise."""
    words = {"sport": "match team goal", "money": "bank price tax", "film": "actor scene screen"}
    rows = []
    for i in range(200):
        name = list(words)[i % 3]
        other = list(words)[(i + i % 5 // 4) % 3]
        rows.append((name, f"the {words[other].split()[i % 3]} of day {i % 11} was new"))
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("section", "headline"), *rows])
    return tmp_path / "texts.csv"


def test_a_table_is_enough_for_fit_test_predict_and_resume(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoo.baselines.bow_choice.LARGER_C", (30.0,))  # faster
    run = tmp_path / "run"
    options = ["--trainer.max_steps=30", *QUIET]
    cli = ZooCLI(["fit", CONFIG, f"--data_dir={table}", f"--output_dir={run}", *options])
    lines = capsys.readouterr().err.splitlines()
    printed = dict(line.split()[:2] for line in lines if line.startswith("  --"))
    assert printed["--model.bow_features"] in ("tfidf", "naive_bayes", "chars", "words_and_chars")
    assert printed["--trainer.val_check_interval"] == "3"
    assert cli.model.label_names == ["film", "money", "sport"]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["automatic"] is False
    assert saved["model"]["init_args"]["bow_features"] == printed["--model.bow_features"]
    # The validation split has a tenth of each class.
    assert [len(cli.datamodule.texts(split)) for split in ("train", "val", "test")] == [160, 20, 20]
    # The checkpoint is enough for the other verbs.
    tested = ZooCLI(["test", f"--ckpt_path={run / 'best.ckpt'}", *QUIET])
    assert tested.trainer.callback_metrics["test_accuracy"] > 0.6
    (tmp_path / "new.csv").write_text("headline\nthe match of day 2 was new\nthe price of day 5 was new\n")
    ZooCLI(["predict", f"--ckpt_path={run / 'best.ckpt'}", f"--data_dir={tmp_path / 'new.csv'}", *QUIET])
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["sport", "money"]
    # Resuming needs no rules.
    again = ZooCLI(["fit", f"--ckpt_path={run / 'last.ckpt'}", *QUIET, "--trainer.max_steps=32"])
    assert "settings chosen" not in capsys.readouterr().err
    assert again.trainer.global_step == 32
    assert dict(again.model.hparams) == dict(cli.model.hparams)


@pytest.mark.filterwarnings("ignore")  # the example logs to the working directory, with one loader process
def test_rules_of_the_card_in_python(table, monkeypatch):
    monkeypatch.setattr("zoo.llama.classifier_defaults.STEPS", range(5, 5))
    names = run_example(ROOT / "zoo" / "llama" / "README.md", table.parent, "### Your texts")
    assert names["classifier"].label_names == ["film", "money", "sport"]
    assert names["classifier"].trainer.global_step == 5
