"""LinearRegressionTasks: blocks of steps, prompts that know their step, a file of prompts to predict."""

import json
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from zoo.datamodules import LinearRegressionTasks
from zoo.datamodules.linear_regression_tasks import Blocks, read_prompts
from zoo.icr import Task, dmmse, least_squares, ridge

SIZES = {"D": 3, "K": 5, "M": 6, "batch_size": 8, "n_val": 20, "n_test": 30}


def data(**options):
    return LinearRegressionTasks(**{**SIZES, **options})


def test_the_halves_of_two_processes_are_the_whole_of_one(monkeypatch):
    whole, half = data(), data(batch_size=4)
    for step in (0, 7):
        parts = []
        for rank in range(2):
            monkeypatch.setattr(half, "rank_and_ranks", lambda rank=rank: (rank, 2))
            parts.append(half.draw(step))
        for one, two in zip(whole.draw(step), zip(*parts, strict=True), strict=True):
            assert torch.equal(one, torch.cat(two))


def test_a_step_draws_the_same_whenever_it_is_taken(monkeypatch):
    first = data().draw(5)
    assert first.x.shape == (8, 5, 3)
    assert first.y.shape == (8, 5)
    torch.randn(3)
    again = data(steps_per_batch=3)
    again.draw(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again.draw(5), strict=True))
    assert not torch.equal(first.x, data().draw(6).x)
    assert not torch.equal(first.x, data(seed=1).draw(5).x)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the run's seed draws the prompts, and not the pool
    other = data()
    assert torch.equal(other.draw(5).x, data(seed=1).draw(5).x)
    assert torch.equal(other.task.pool(), Task(D=3, M=6).pool())
    assert torch.equal(other.evaluation("val")["true"].prompts.x, data(seed=3).evaluation("val")["true"].prompts.x)


@pytest.mark.parametrize(
    ("start", "end", "length", "expected"),
    [
        (0, 5, 2, [[0, 1], [2, 3], [4]]),
        (3, 5, 4, [[3, 4]]),
        (5, 5, 4, []),
        (2, 6, 4, [[2, 3, 4, 5]]),
    ],
)
def test_blocks_go_from_where_the_trainer_stands_to_its_end(start, end, length, expected):
    trainer = SimpleNamespace(global_step=0, max_steps=end)
    blocks = iter(Blocks(trainer, length))
    trainer.global_step = start  # known only after the loader is asked for an iterator
    assert [block.tolist() for block in blocks] == expected


def test_blocks_without_an_end():
    blocks = Blocks(SimpleNamespace(global_step=9, max_steps=-1), 3)
    assert [block.tolist() for block in islice(blocks, 2)] == [[9, 10, 11], [12, 13, 14]]


def test_evaluation_stands_beside_the_exact_answers():
    tasks = data()
    pool = tasks.task.pool()
    for split, n in (("val", 20), ("test", 30)):
        both = tasks.evaluation(split)
        assert tasks.evaluation(split)["true"].prompts.x is both["true"].prompts.x  # made once
        for kind, (prompts, answers) in both.items():
            assert len(prompts.x) == n
            known = (prompts.w[:, None] == pool).all(-1).any(1)
            assert known.all() if kind == "pretrain" else not known.any()
            x, y = prompts.x, prompts.y
            assert torch.equal(answers["ridge"], ridge(x, y, 0.125))
            assert torch.equal(answers["dmmse"], dmmse(x, y, pool, 0.125))
            if "least_squares" in answers:
                assert torch.equal(answers["least_squares"], least_squares(x, y))
    assert not torch.equal(tasks.evaluation("val")["true"].prompts.x, tasks.evaluation("test")["true"].prompts.x[:20])
    assert tasks.dataset("val") == range(20)


def test_rows_of_an_evaluation():
    whole = data().evaluation("val")["pretrain"]
    some = whole.rows(torch.tensor([3, 11]))
    everywhere = whole.errors(torch.zeros(20, 5))
    for name, errors in some.errors(torch.zeros(2, 5)).items():
        assert torch.equal(errors, everywhere[name][[3, 11]])
    assert torch.equal(everywhere["mse"], whole.prompts.y.square())
    assert torch.equal(everywhere["noise_free"], whole.prompts.clean.square())
    assert torch.equal(everywhere["to_ridge"], whole.answers["ridge"].square())


def test_an_infinite_pool_has_no_dmmse():
    answers = data(M="inf").evaluation("val")["pretrain"].answers
    assert "dmmse" not in answers or answers["dmmse"].isnan().all()
    assert answers["ridge"].isfinite().all()


@pytest.mark.parametrize("name", ["batch_size", "steps_per_batch", "n_val", "n_test"])
def test_counts_start_at_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        data(**{name: 0})


def test_what_a_file_is_for(tmp_path):
    with pytest.raises(ValueError, match="there are no prompts to predict: give a file of them"):
        data().setup("predict")
    for stage in ("fit", "validate", "test"):
        with pytest.raises(ValueError, match=f"the prompts of {stage} are drawn: drop --data_dir"):
            data(data="prompts.jsonl").setup(stage)
    data(data="prompts.jsonl").setup("predict")
    data().setup("fit")


# ---- the file

GOOD = {"x_context": [[1, 2, 3]], "y_context": [0.5], "x_query": [[3, 2, 1], [0, 0, 0]]}


def test_prompts_are_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    empty = {"x_context": [], "y_context": [], "x_query": [[1, 1, 1]]}
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(empty | {'note': 'more keys are left alone'})}\n")
    first, second = read_prompts(str(path), Task(D=3, K=5))
    assert (first["index"], second["index"]) == (0, 1)
    assert torch.equal(first["x_query"], torch.tensor([[3.0, 2, 1], [0, 0, 0]]))
    assert torch.equal(first["y_context"], torch.tensor([0.5]))
    assert len(second["y_context"]) == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "is no prompt.*x_context, y_context and x_query"),
        ("3", "is no prompt"),
        ("[]", "is no prompt"),
        (json.dumps({"x_context": [], "y_context": []}), "is no prompt.*x_query"),
        (json.dumps(GOOD | {"y_context": ["one"]}), "is no prompt"),
        (json.dumps(GOOD | {"x_query": [[1, 2, 3], [1, 2]]}), "is no prompt"),
        (json.dumps(GOOD | {"x_query": [[1, 2]]}), r": x_query has shape \(1, 2\), and must be rows of D = 3 numbers"),
        (json.dumps(GOOD | {"x_query": []}), ": x_query "),
        (json.dumps(GOOD | {"y_context": [1, 2]}), ": y_context has shape"),
        (json.dumps(GOOD | {"y_context": [float("nan")]}), ": a number is NaN or infinite"),
        (json.dumps({**GOOD, "x_context": [[1, 2, 3]] * 5, "y_context": [1] * 5}), ": 5 examples leave no room"),
    ],
)
def test_a_bad_line_is_named(line, sentence, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(ValueError, match=f"{path} line 3.*{sentence}"):
        read_prompts(str(path), Task(D=3, K=5))


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl holds no prompts"):
        read_prompts(str(path), Task(D=3, K=5))


@pytest.mark.parametrize("path", ["none.jsonl", "."])
def test_a_file_that_is_none(path):
    with pytest.raises(FileNotFoundError, match=f"there is no file of prompts {path}"):
        read_prompts(path, Task())
