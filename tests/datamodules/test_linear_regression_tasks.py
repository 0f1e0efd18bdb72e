"""LinearRegressionTasks: draws by batch number, loaders, evaluation prompts, a file of prompts to predict."""

import json
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from zoo.datamodules import LinearRegressionTasks
from zoo.datamodules.linear_regression_tasks import DrawnPrompts, PromptLoader, read_queries
from zoo.datamodules.sources.table_rows import BadRows
from zoo.errors import UserError
from zoo.icr import Task, dmmse, least_squares, ridge

SIZES = {"D": 3, "K": 5, "M": 6, "batch_size": 8, "n_val": 20, "n_test": 30}


def data(**options):
    return LinearRegressionTasks(**{**SIZES, **options})


def test_two_processes_draw_the_prompts_of_one(monkeypatch):
    whole, half = data(), data(batch_size=4)
    for step in (0, 7):
        parts = []
        for rank in range(2):
            monkeypatch.setattr(half, "rank_and_ranks", lambda rank=rank: (rank, 2))
            parts.append(half.draw(step))
        for one, two in zip(whole.draw(step), zip(*parts, strict=True), strict=True):
            assert torch.equal(one, torch.cat(two))


def test_a_batch_is_a_function_of_seed_and_number(monkeypatch):
    first = data().draw(5)
    assert first.x.shape == (8, 5, 3)
    assert first.y.shape == (8, 5)
    torch.randn(3)
    again = data()
    again.draw(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again.draw(5), strict=True))
    assert not torch.equal(first.x, data().draw(6).x)
    assert not torch.equal(first.x, data(seed=1).draw(5).x)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the run's seed changes the prompts, not the pool
    other = data()
    assert torch.equal(other.draw(5).x, data(seed=1).draw(5).x)
    assert torch.equal(other.task.pool(), Task(D=3, M=6).pool())
    assert torch.equal(other.evaluation("val").true.prompts.x, data(seed=3).evaluation("val").true.prompts.x)


NUMBERS = DrawnPrompts(Task(), lambda number: number)  # batches that are their numbers


def trainer_after(steps: int, max_steps: int, accumulate: int = 1):
    """A trainer that has taken `steps` optimizer steps of `accumulate` batches."""
    counts = SimpleNamespace(ready=steps * accumulate, processed=steps * accumulate, completed=steps * accumulate)
    progress = SimpleNamespace(total=counts, current=counts, is_last_batch=False)
    validated = SimpleNamespace(total=SimpleNamespace(processed=0))
    epoch_loop = SimpleNamespace(
        batch_progress=progress,
        val_loop=SimpleNamespace(batch_progress=validated),
        _should_check_val_epoch=lambda: True,
    )
    return SimpleNamespace(
        global_step=steps,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        fit_loop=SimpleNamespace(epoch_loop=epoch_loop, done=True),
    )


@pytest.mark.parametrize(
    ("start", "end", "accumulate", "expected"),
    [(0, 5, 1, [0, 1, 2, 3, 4]), (3, 5, 1, [3, 4]), (5, 5, 1, []), (2, 4, 3, [6, 7, 8, 9, 10, 11])],
)
def test_loader_starts_at_the_trainers_step_and_ends_at_max_steps(start, end, accumulate, expected):
    trainer = SimpleNamespace()
    batches = iter(PromptLoader(NUMBERS, trainer))
    vars(trainer).update(vars(trainer_after(start, end, accumulate)))  # known only after the iterator is created
    assert list(batches) == expected


def test_loader_without_an_end():
    assert list(islice(PromptLoader(NUMBERS, trainer_after(9, -1)), 2)) == [9, 10]
    assert list(islice(PromptLoader(NUMBERS), 3)) == [0, 1, 2]


@pytest.mark.parametrize(("before", "after", "expected"), [(4, 1, [8, 9, 10]), (1, 4, [2, 3, 4, 5, 6, 7, 8, 9])])
def test_no_prompts_repeat_when_the_accumulation_changes(before, after, expected):
    done = {"number": 2 * before, "unused": 0, "validation_due": False}
    trainer = trainer_after(2, 4 if after > 1 else 5, after)
    trainer.fit_loop.epoch_loop.batch_progress.total = SimpleNamespace(ready=2 * before, processed=2 * before)
    loader = PromptLoader(NUMBERS, trainer)
    loader.load_state_dict(done)
    assert list(loader) == expected


def test_loader_without_a_trainer_yields_the_draws():
    tasks = data()
    for number, batch in enumerate(islice(tasks.train_dataloader(), 3)):
        assert all(torch.equal(*both) for both in zip(batch, tasks.draw(number), strict=True))


def test_evaluation_loader_covers_the_split_in_order():
    tasks = data()
    batches = list(tasks.val_dataloader())
    assert [len(batch.true.prompts.x) for batch in batches] == [8, 8, 4]
    for kind, whole in tasks.evaluation("val")._asdict().items():
        parts = [getattr(batch, kind) for batch in batches]
        assert torch.equal(torch.cat([part.prompts.y for part in parts]), whole.prompts.y)
        for name, answer in whole.answers.items():
            assert torch.equal(torch.cat([part.answers[name] for part in parts]), answer)


def test_steps_per_batch_is_a_removed_argument():
    with pytest.raises(UserError, match=r"the argument steps_per_batch of LinearRegressionTasks no longer exists$"):
        data(steps_per_batch=2)


def test_checkpoints_of_blocks_are_not_resumed():
    tasks = data()
    tasks.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    tasks.load_state_dict(tasks.state_dict())
    with pytest.raises(UserError, match="cannot be resumed, only evaluated"):
        tasks.load_state_dict({"class": "LinearRegressionTasks"})


def test_evaluation_has_the_exact_estimators_predictions():
    tasks = data()
    pool = tasks.task.pool()
    for split, n in (("val", 20), ("test", 30)):
        both = tasks.evaluation(split)
        assert tasks._evaluation(split) is tasks._evaluation(split)  # computed once
        for kind, (prompts, answers) in both._asdict().items():
            assert len(prompts.x) == n
            known = (prompts.w[:, None] == pool).all(-1).any(1)
            assert known.all() if kind == "pretrain" else not known.any()
            x, y = prompts.x, prompts.y
            assert torch.equal(answers["ridge"], ridge(x, y, 0.125))
            assert torch.equal(answers["dmmse"], dmmse(x, y, pool, 0.125))
            assert torch.equal(answers["least_squares"], least_squares(x, y))
    assert not torch.equal(tasks.evaluation("val").true.prompts.x, tasks.evaluation("test").true.prompts.x[:20])
    assert (len(tasks.dataset("val")), len(tasks.dataset("test"))) == (20, 30)


def test_rows_of_an_evaluation():
    whole = data().evaluation("val").pretrain
    some = whole.rows(torch.tensor([3, 11]))
    everywhere = whole.errors(torch.zeros(20, 5))
    for name, errors in some.errors(torch.zeros(2, 5)).items():
        assert torch.equal(errors, everywhere[name][[3, 11]])
    assert torch.equal(everywhere["mse"], whole.prompts.y.square())
    assert torch.equal(everywhere["noise_free"], whole.prompts.clean.square())
    assert torch.equal(everywhere["to_ridge"], whole.answers["ridge"].square())


def test_dmmse_is_not_defined_for_infinite_pools():
    answers = data(M="inf").evaluation("val").pretrain.answers
    assert answers["dmmse"].isnan().all()
    assert answers["ridge"].isfinite().all()


@pytest.mark.parametrize("name", ["batch_size", "n_val", "n_test"])
def test_counts_start_at_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        data(**{name: 0})


def test_a_file_of_prompts_is_for_predict_only(tmp_path):
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
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(empty | {'note': 'other keys are ignored'})}\n")
    first, second = read_queries(str(path), Task(D=3, K=5))
    # Processes of a run compare the files; drawn prompts follow from the settings.
    tasks = data(data=str(path))
    before = tasks.fingerprint("predict")
    assert tasks.fingerprint("val") == {}
    path.write_text(path.read_text() + "\n")
    assert tasks.fingerprint("predict") != before
    assert (first.index, second.index) == (0, 1)
    assert torch.equal(first.x_query, torch.tensor([[3.0, 2, 1], [0, 0, 0]]))
    assert torch.equal(first.y_context, torch.tensor([0.5]))
    assert len(second.y_context) == 0
    assert (first.line, second.line) == (1, 3)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "is not a prompt.*x_context, y_context and x_query"),
        ("3", "is not a prompt"),
        ("[]", "is not a prompt"),
        (json.dumps({"x_context": [], "y_context": []}), "is not a prompt.*x_query"),
        (json.dumps(GOOD | {"y_context": ["one"]}), ": y_context must be numbers"),
        (json.dumps(GOOD | {"y_context": [True]}), ": y_context must be numbers"),
        (json.dumps(GOOD | {"y_context": [10**400]}), ": y_context must be numbers"),
        (json.dumps(GOOD | {"y_context": [1e39]}), ": a number is NaN or infinite, or beyond 3.4e38"),
        (json.dumps(GOOD | {"y_context": [[1]]}), r": y_context has shape \(1, 1\)"),
        (json.dumps(GOOD | {"y_context": 1}), "is not a prompt.*no list y_context"),
        (json.dumps(GOOD | {"x_query": [[1, 2, 3], [1, 2]]}), ": x_query must be numbers in rows of equal length"),
        (json.dumps(GOOD | {"x_query": [[True, 2, 3]]}), ": x_query must be numbers"),
        ("[" * 100_000, "is not a prompt.*nested too deeply"),
        (json.dumps(GOOD | {"x_query": [[1, 2]]}), r": x_query has shape \(1, 2\), and must be rows of D = 3 numbers"),
        (json.dumps(GOOD | {"y_context": [1, 2]}), ": y_context has shape"),
        (json.dumps(GOOD | {"y_context": [float("nan")]}), ": a number is NaN or infinite"),
        (json.dumps({**GOOD, "x_context": [[1, 2, 3]] * 5, "y_context": [1] * 5}), ": 5 examples are too many"),
    ],
)
def test_a_bad_line_is_named(line, sentence, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(UserError, match=f"{path} line 3.*{sentence}.*set --data.bad_rows skip"):
        read_queries(str(path), Task(D=3, K=5))
    bad = BadRows("skip")
    [query] = read_queries(str(path), Task(D=3, K=5), bad)
    assert (query.index, query.line) == (0, 1)
    assert list(bad.reasons) == [f"{path} line 3"]


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl holds no prompts"):
        read_queries(str(path), Task(D=3, K=5))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("none.jsonl", "there is no file of prompts none"), (".", "is a folder"), ("/dev/zero", "is a device")],
)
def test_only_regular_files_are_read(path, sentence):
    with pytest.raises((FileNotFoundError, UserError), match=sentence):
        read_queries(path, Task())


def test_evaluations_first_used_in_inference_mode_are_usable_later_and_given_out_as_copies():
    data = LinearRegressionTasks(D=2, K=4, M=3, n_val=5, batch_size=5)
    with torch.inference_mode():
        next(iter(data.val_dataloader()))
    before, changed = data.evaluation("val"), data.evaluation("val")
    for part in (changed.true.prompts.x, changed.true.prompts.y, *changed.true.answers.values()):
        part.zero_()
    [batch] = data.val_dataloader()
    assert torch.equal(batch.true.prompts.x, before.true.prompts.x)
    assert torch.equal(batch.true.answers["ridge"], before.true.answers["ridge"])
    layer = torch.nn.Linear(2, 1)
    layer(batch.true.prompts.x).sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], batch.true.prompts.x.sum((0, 1)))
