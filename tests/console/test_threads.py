"""Waiting of OpenMP's threads: short by default, otherwise as the user says, and set before torch is imported."""

import os
import sys

import pytest

from zoo import __main__ as command
from zoo.console.threads import WAIT_VARIABLES, environment_with_threads, wait_briefly

OURS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}


@pytest.fixture(autouse=True)
def no_wait_variables(monkeypatch):
    for name in WAIT_VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test, also where it was not set
        monkeypatch.delenv(name)


def waiting(environ):
    return {name: environ[name] for name in WAIT_VARIABLES if name in environ}


@pytest.mark.parametrize(
    "given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "5"}]
)
def test_threads_wait_briefly_unless_the_user_has_set_how(monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert waiting(os.environ) == (given or OURS)


def test_a_verb_sets_it_before_torch_is_imported(monkeypatch):
    policies = []

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "zoo.cli.command_line":
                policies.append(waiting(os.environ))
                raise KeyboardInterrupt  # ends the command
            return None

    monkeypatch.delitem(sys.modules, "zoo.cli.command_line", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    command.main(["fit", "--config=tiny/llama"])
    assert policies == [OURS]


@pytest.mark.parametrize(
    ("given", "used"), [(None, "3"), ("abc", "3"), ("", "3"), ("0", "3"), ("2", "2"), ("4,1", "4,1")]
)
def test_a_new_process_has_the_users_number_of_threads_if_it_is_one(monkeypatch, given, used):
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS") if given is None else monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert environment_with_threads(3)["OMP_NUM_THREADS"] == used
