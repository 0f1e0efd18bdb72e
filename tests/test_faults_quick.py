"""The harness of benchmarks/faults.py counts outcomes correctly; a small sample of each kind of mutated input."""

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from benchmarks.fault_kinds import KINDS
from benchmarks.fault_kinds.accumulation import ARGUMENTS, _gradients, _merge, _sample
from benchmarks.fault_kinds.cases import Kind, Outcome, failure, outcome_of, wanted
from benchmarks.fault_kinds.mutations import flip_bit, mutate, mutate_bytes, mutate_text
from benchmarks.fault_kinds.processes import run_cases
from benchmarks.fault_kinds.runs import unequal
from zoo.errors import UserError

FUZZED = [name for name in KINDS if name.startswith("fuzz-")]
NEED_A_RUN = {"fuzz-checkpoint"}  # a command trains the sample: seconds
SAMPLE = 15  # cases of each kind
NESTED = {"a": [1, 2.5, "text", {"b": None}], "c": {"d": [True, []]}}


# ---- mutations


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_mutations_are_reproducible_and_leave_their_input_alone(seed):
    value = {"a": [1, 2.5, "text", {"b": None}], "c": {"d": [True, []]}}
    assert repr(mutate(value, Random(seed))) == repr(mutate(value, Random(seed)))
    assert value == NESTED
    assert mutate_text("a text", Random(seed)) == mutate_text("a text", Random(seed))
    assert mutate_bytes(b"bytes", Random(seed)) == mutate_bytes(b"bytes", Random(seed))


def test_most_mutations_change_something():
    changed = sum(repr(mutate(NESTED, Random(seed))) != repr(NESTED) for seed in range(200))
    assert changed > 180


@given(st.randoms(use_true_random=False), st.binary(min_size=1, max_size=40))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_one_flipped_bit_is_one_bit(rng, data):
    flipped = flip_bit(data, rng)
    assert len(flipped) == len(data)
    assert sum((a ^ b).bit_count() for a, b in zip(data, flipped, strict=True)) == 1


# ---- outcomes of calls


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("call", "names", "is_wanted", "what"),
    [
        (lambda: 3, ["a.bin"], True, "loaded"),
        (lambda: _raise(UserError("a.bin is damaged: copy it again")), ["a.bin"], True, "refused"),
        (lambda: _raise(FileNotFoundError(2, "No such file", "a.bin")), ["a.bin"], True, "refused"),
        (lambda: _raise(UserError("the file is damaged: copy it again")), ["a.bin"], False, "names none of a.bin"),
        (lambda: _raise(UserError("")), [], False, "not a sentence"),
        (lambda: _raise(KeyError("dim")), [], False, "raised KeyError"),
        (lambda: _raise(MemoryError("not enough")), [], False, "raised MemoryError"),
        (lambda: _raise(RuntimeError("[enforce fail] can't allocate memory")), [], False, "raised RuntimeError"),
        (lambda: _raise(BaseException("a panic of Rust")), [], False, "raised BaseException"),
    ],
)
def test_a_call_counts_as_wanted_only_if_it_returns_or_refuses(call, names, is_wanted, what):
    outcome = outcome_of(call, names)
    assert outcome.is_wanted is is_wanted
    assert what in outcome.what


def test_unequal_values_are_named_by_their_place():
    one = {"a": [torch.zeros(2), 1]}
    assert unequal(one, {"a": [torch.zeros(2), 1]}, "it") == ""
    assert unequal(one, {"a": [torch.tensor([0.0, 1e-30]), 1]}, "it") == "it.a.0"
    assert unequal(one, {"a": [torch.zeros(2), 1, 2]}, "it").startswith("it.a.2")
    assert unequal(one, {"b": 1}, "it") == "it"


# ---- processes


def _broken_reader(index, rng, folder: Path) -> Outcome:
    """A reader with a fault for each kind of bad end."""
    if index == 1:
        return outcome_of(lambda: {}["missing"])
    if index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if index == 3:
        time.sleep(60)
    if index == 4:
        return outcome_of(lambda: bytearray(2**33))
    if index == 5:
        raise AssertionError("the case itself is wrong")
    return wanted("loaded")


def test_every_bad_end_of_a_process_is_counted_and_the_other_cases_go_on(tmp_path):
    kind = Kind("broken", "", _broken_reader, 8, 8, seconds=2.0, gigabytes=1.0, case_name=lambda i: f"number {i}")
    outcomes = dict(run_cases(kind, 0, range(8), tmp_path, jobs=2))
    assert sorted(outcomes) == list(range(8))
    assert Counter(outcome.is_wanted for outcome in outcomes.values()) == {True: 3, False: 5}
    ends = {
        1: "raised KeyError",
        2: "number 2: the process ended with signal SIGKILL",
        3: "number 3: it took longer than 2 s",
        4: "raised MemoryError",
        5: "AssertionError in test_faults_quick.py",
    }
    for index, what in ends.items():
        assert what in outcomes[index].what


def test_a_case_depends_on_its_seed_and_number_alone(tmp_path):
    def draw(index, rng, folder):
        return wanted(str(rng.random()))

    kind = Kind("draw", "", draw, 4, 4)
    forward, backward = (dict(run_cases(kind, 7, order, tmp_path, 1)) for order in (range(4), range(3, -1, -1)))
    assert forward == backward
    assert len({outcome.what for outcome in forward.values()}) == 4
    assert dict(run_cases(kind, 8, range(4), tmp_path, 1)) != forward


def test_a_failure_is_counted_printed_with_its_command_and_ends_with_exit_code_1(tmp_path, monkeypatch, capsys):
    from benchmarks import faults

    kind = Kind("broken", "", lambda i, rng, folder: failure("it broke") if i == 1 else wanted("loaded"), 3, 3)
    monkeypatch.setattr(faults, "KINDS", {"broken": kind})
    monkeypatch.setattr(faults.sys, "argv", ["faults.py", "--quick", "--seed", "5"])
    assert faults.main() == 1
    printed = capsys.readouterr().out
    assert "python benchmarks/faults.py --only broken --seed 5 --index 1" in printed
    assert "3 cases, 2 loaded, 1 failed" in printed
    monkeypatch.setattr(faults.sys, "argv", ["faults.py", "--quick", "--only", "broken", "--index", "0"])
    assert faults.main() == 0


def test_the_gradient_of_equal_batches_needs_no_weights():
    """The reference of the kind `accumulation`: where all batches are alike, plain accumulation is exact."""
    rng, (model, arguments) = Random(0), ARGUMENTS["RegressLM"]
    batches = [[_sample("RegressLM", rng) for _ in range(2)] for _ in range(4)]
    separate = _gradients(model, arguments, [_merge("RegressLM", [batch]) for batch in batches], 2)
    merged = [_merge("RegressLM", batches[:2]), _merge("RegressLM", batches[2:])]
    for one, other in zip(separate, _gradients(model, arguments, merged, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- a sample of each kind of mutated input


@pytest.mark.parametrize("name", sorted({*FUZZED} - NEED_A_RUN))
def test_mutated_input_is_loaded_or_refused_with_a_sentence(name, tmp_path):
    """In a process with limits, so that an input that hangs or fills the memory fails alone."""
    kind = replace(KINDS[name], seconds=5.0)

    @given(st.lists(st.integers(0, 2**32), min_size=SAMPLE, max_size=SAMPLE, unique=True))
    @settings(max_examples=1, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    def sample(indices):
        outcomes = run_cases(kind, 0, indices, tmp_path, jobs=1)
        failed = {index: outcome.what for index, outcome in outcomes if not outcome.is_wanted}
        repeat = f"python benchmarks/faults.py --only {name} --seed 0 --index {next(iter(failed), '')}"
        assert not failed, f"again: {repeat}"

    sample()
