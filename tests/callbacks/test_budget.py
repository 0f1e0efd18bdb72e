"""A time limit: durations, and the plan of steps, with a clock that the test moves."""

from types import SimpleNamespace

import pytest

from zoo.callbacks import budget
from zoo.callbacks.budget import Budget, parse_duration, seconds_left
from zoo.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5min", 300), ("1.5h", 5400), (" .5 min ", 30), ("2m", 120)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "5 weeks", "-3s", "1:30", "min", "1e3", "nan"])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="--budget must be a time such as"):
        parse_duration(text)


class Module:
    def __init__(self, total_steps):
        self.total_steps = total_steps

    def plan_steps(self, total_steps):
        self.total_steps = total_steps
        return {"warmup_steps": total_steps // 20}


def run(monkeypatch, seconds, step_seconds, validation_seconds, total_steps):
    """Steps, validations and seconds of a run whose loop behaves as Lightning's."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    plans, validations = [], []
    callback = Budget(seconds, since=95.0, n_validations=6, record=plans.append)
    trainer = SimpleNamespace(
        global_step=0, world_size=1, sanity_checking=False, should_stop=False, val_check_batch=10**9
    )
    module = Module(total_steps)
    callback.on_train_start(trainer, module)
    while not trainer.should_stop and trainer.global_step < total_steps:
        callback.on_train_batch_start(trainer, module, None, 0)
        clock.now += step_seconds(clock.now) + 10 * (trainer.global_step == 0)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)
        if trainer.should_stop or trainer.global_step % trainer.val_check_batch == 0:
            callback.on_validation_start(trainer, module)
            clock.now += validation_seconds
            callback.on_validation_end(trainer, module)
            validations.append(trainer.global_step)
    callback.on_train_end(trainer, module)
    return module, plans, validations, clock.now - 95


def test_the_schedule_ends_with_the_time(monkeypatch):
    module, plans, validations, seconds = run(monkeypatch, 100, lambda now: 0.1, 2.0, 10_000)
    assert 90 < seconds <= 100
    # 5 s before the training, 10 s for the slow first step, 12 s of validations.
    assert 650 < validations[-1] <= 730
    assert module.total_steps == validations[-1] == plans[-1]["total_steps"]
    assert plans[-1]["warmup_steps"] == module.total_steps // 20
    assert 5 <= len(validations) <= 8


def test_the_plan_follows_a_machine_that_becomes_slower(monkeypatch):
    module, _, validations, seconds = run(monkeypatch, 100, lambda now: 0.1 if now < 140 else 0.4, 1.0, 10_000)
    assert 85 < seconds < 102
    assert module.total_steps == validations[-1]


def test_a_long_time_changes_nothing(monkeypatch):
    module, plans, validations, _ = run(monkeypatch, 1000, lambda now: 0.1, 1.0, 300)
    assert module.total_steps == 300
    assert {plan["total_steps"] for plan in plans} == {300}
    assert validations[-1] == 300
    assert len(validations) == 6


def test_a_time_that_ends_within_the_first_steps_stops_with_a_warning(monkeypatch, capsys):
    with pytest.warns(UserWarning, match=r"was over after 1 of 300 steps, .* began after 5 s; raise --budget"):
        *_, validations, _ = run(monkeypatch, 6, lambda now: 0.1, 1.0, 300)
    assert validations == [1]


def test_a_time_that_is_over_before_the_first_step_is_refused(monkeypatch):
    with pytest.raises(UserError, match="--budget of 4 s is too short: 5 s had passed before the first step"):
        run(monkeypatch, 4, lambda now: 0.1, 1.0, 300)


def test_the_plan_is_printed_once(monkeypatch, capsys):
    run(monkeypatch, 100, lambda now: 0.1, 2.0, 10_000)
    line, _ = capsys.readouterr().err.splitlines()
    assert line == "zoo: --budget: the training began after 5 s; 528 of 10,000 steps fit into the time"


@pytest.mark.parametrize(("seconds", "steps"), [(0.1, 300), (0.4, 151)])
def test_the_end_corrects_a_plan_that_has_changed(seconds, steps, monkeypatch, capsys):
    module, *_ = run(monkeypatch, 100, lambda now: 0.4 if now < 130 else seconds, 4.0, 300)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "zoo: --budget: the training began after 5 s; 135 of 300 steps fit into the time"
    assert last == f"zoo: --budget: {steps} of 300 steps have fitted into the time"
    assert module.total_steps == steps


def test_a_plan_that_holds_is_not_corrected(monkeypatch, capsys):
    run(monkeypatch, 100, lambda now: 0.4, 5.0, 300)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(" of 300 steps fit into the time")


def test_seconds_left(monkeypatch):
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: 100.0))
    assert seconds_left("1min", 90.0) == 50
    assert seconds_left(None, 0.0) is None
    with pytest.raises(UserError, match="--budget 9s is too short: the start of the command alone took 10 s; raise it"):
        seconds_left("9s", 90.0)


def test_several_processes_are_refused_at_the_start():
    with pytest.raises(UserError, match="--budget works on one process only"):
        Budget(10, 0.0, 6, print).setup(SimpleNamespace(world_size=2), SimpleNamespace(), "fit")


def test_time_that_is_over_is_refused_before_the_data_is_prepared(monkeypatch):
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: 100.0))
    Budget(10, 91.0, 6, print).setup(SimpleNamespace(world_size=1), SimpleNamespace(), "fit")
    with pytest.raises(UserError, match="--budget of 10 s is too short: 12 s had passed before the first step"):
        Budget(10, 88.0, 6, print).setup(SimpleNamespace(world_size=1), SimpleNamespace(), "fit")


@pytest.mark.parametrize(
    ("seconds", "limit"), [(10, "00:00:00:10"), (0.5, "00:00:00:01"), (5400, "00:01:30:00"), (90061, "01:01:01:01")]
)
def test_a_schedule_that_cannot_be_planned_is_refused_with_the_option_to_use(seconds, limit):
    callback = Budget(seconds, 0.0, 6, print)
    with pytest.raises(
        UserError, match=f"has another schedule: limit the time with --trainer.max_time {limit} instead"
    ):
        callback.on_train_start(SimpleNamespace(world_size=1), SimpleNamespace())
