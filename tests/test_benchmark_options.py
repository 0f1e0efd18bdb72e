"""Benchmarks change the published rows only with --store, and refuse numbers of rounds below 1."""

import argparse
import json
import shlex
import sys

import pytest

from benchmarks import icr, measure, text_regression
from benchmarks.all_results import STUDIES, storing
from tests.commands import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    return tmp_path


def parse(monkeypatch, words, **options):
    monkeypatch.setattr(sys, "argv", ["benchmarks/some.py", *shlex.split(words)])
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output_dir")
    return measure.parse_arguments(parser, "some.json", **options)


def test_rows_go_to_results_only_with_store(folder, monkeypatch):
    assert parse(monkeypatch, "").output == folder / "runs" / "benchmarks" / "some.json"
    assert parse(monkeypatch, "--output_dir x").output == folder / "runs" / "benchmarks" / "some.json"
    assert parse(monkeypatch, "--store").output == folder / "results" / "some.json"
    monkeypatch.chdir(folder)
    assert parse(monkeypatch, "--output a/b.json").output == folder / "a" / "b.json"
    assert (folder / "a").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--repeats 0", "--repeats must be at least 1, not 0"),
        ("--repeats -3", "--repeats must be at least 1, not -3"),
        ("--store --output x.json", "not allowed with argument"),
        ("--sto", "unrecognized arguments: --sto"),
        ("--output .", "--output . is a folder: give a file"),
    ],
)
def test_wrong_options_are_refused(folder, monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, words)
    assert message in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_unknown_options_are_passed_on(folder, monkeypatch):
    args = parse(monkeypatch, "--trainer.max_steps=2 --store", passes_on=True)
    assert args.options == ["--trainer.max_steps=2"]
    assert args.output == folder / "results" / "some.json"


@pytest.mark.parametrize("option", ["--store", "--output x.json", "--output=x.json"])
def test_the_stored_command_is_without_the_place_of_its_rows(folder, monkeypatch, option):
    parse(monkeypatch, f"--repeats 2 {option} --output_dir y")
    assert measure.facts()["command"] == "python benchmarks/some.py --repeats 2 --output_dir y"


def test_a_benchmark_leaves_the_published_rows(folder, monkeypatch, capsys):
    published = folder / "results" / "icr_speed.json"
    published.parent.mkdir()
    published.write_text('[{"benchmark": "draw", "ours": 1}]')
    row = {"benchmark": "draw", "ours": 0.5, "peer": 1.0, "ratio": 2.0}
    monkeypatch.setitem(icr.PARTS, "data", lambda repeats: [row])
    for option, ours in (("", 1), ("--store", 0.5)):
        monkeypatch.setattr(sys, "argv", ["benchmarks/icr.py", *f"--only data --repeats 1 {option}".split()])
        with pytest.raises(SystemExit, match="0"):
            icr.main()
        assert "draw" in capsys.readouterr().out
        assert json.loads(published.read_text())[0]["ours"] == ours
    assert json.loads((folder / "runs" / "benchmarks" / "icr_speed.json").read_text())[0]["repeats"] == 1


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.command.split(" --")[0])
def test_every_study_has_these_options(study):
    source = (ROOT / "benchmarks" / study.script).read_text(encoding="utf-8")
    assert "parse_arguments(parser, " in source
    assert '"results"' not in source
    assert "parser.parse_args()" not in source
    assert storing(study.command).split()[:2] == [study.script, "--store"]


@pytest.mark.parametrize(("study", "name"), [("scan_bench", "rows"), ("vader", "tested_on"), ("integers", "task")])
def test_a_study_replaces_its_own_rows_and_keeps_the_others(study, name, folder, monkeypatch, capsys):
    def run(words, *rows):
        def scores(args):
            yield from rows

        scores.__name__ = study
        monkeypatch.setattr(text_regression, study, scores)
        monkeypatch.setattr(sys, "argv", ["benchmarks/text_regression.py", study, *words.split()])
        text_regression.main()
        path = folder / "runs" / "benchmarks" / f"regress_lm_{study}.json"
        return [(row[name], row["model"], row.get("seed"), row["mae"]) for row in json.loads(path.read_text())]

    row = {name: 500, "model": "RegressLM", "seed": 0, "mae": 3.0}
    assert run("", row, row | {"seed": 1}) == [(500, "RegressLM", 0, 3.0), (500, "RegressLM", 1, 3.0)]
    others = row | {"seed": 1, "mae": 2.0}, row | {name: 100}, {name: 100, "model": "median", "mae": 4.0}
    assert run("--seeds 1", *others) == [
        (500, "RegressLM", 0, 3.0), (500, "RegressLM", 1, 2.0), (100, "RegressLM", 0, 3.0), (100, "median", None, 4.0)
    ]  # fmt: skip
