"""The GPU parts of the benchmarks: smaller batches where memory ends, errors of gradients, all parts in one command."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_run, revdeq
from benchmarks.gpu import with_smaller_batches
from benchmarks.measure import measure_parts


def test_a_batch_is_halved_until_it_fits():
    tried = []

    def run(batch, most=9):
        tried.append(batch)
        if batch > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 10 * batch

    assert with_smaller_batches(run, 32) == (80, {"batch": 8, "halved_from": 32})
    assert tried == [32, 16, 8]
    assert with_smaller_batches(run, 9) == (90, {"batch": 9})
    with pytest.raises(torch.cuda.OutOfMemoryError):
        with_smaller_batches(lambda batch: run(batch, most=0), 3)


def test_the_error_of_reversible_gradients():
    sizes = {
        "vocab_size": 31,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 12,
    }
    model = revdeq.build(**sizes)
    tokens = revdeq.text(model, 2, 11)

    def error(state_dtype):
        autocast = partial(torch.autocast, "cpu", enabled=False)
        return revdeq.exactness(model, tokens, autocast, "f", max_steps=4, state_dtype=state_dtype)["error"]

    assert error(torch.float64) < 1e-6 < error(torch.float32) < 1e-3


# ---- everything on a GPU in one command


LOG = """\
[gw0] linux -- Python 3.11
tests/a/test_one.py::test_x[True]
tests/a/test_one.py::test_y[0-b c]
tests/a/test_two.py::test_z
[gw0] [ 33%] PASSED tests/a/test_one.py::test_x[True]
[gw1] [ 66%] FAILED tests/a/test_two.py::test_z
tests/a/test_two.py::test_w
ERROR tests/a/test_three.py - ImportError
"""


def test_names_of_tests_that_failed_or_did_not_end():
    expected = ["FAILED tests/a/test_two.py::test_z", "ERROR tests/a/test_three.py"]
    not_ended = ["NOT ENDED tests/a/test_two.py::test_w"]
    assert gpu_run.unsuccessful_tests(LOG) == expected + not_ended
    plain = "tests/a.py::test_x PASSED [ 50%]\ntests/a.py::test_y FAILED [100%]\n"
    assert gpu_run.unsuccessful_tests(plain) == ["FAILED tests/a.py::test_y"]


def test_a_part_that_fails_or_takes_too_long_ends_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    row = f"import pathlib; pathlib.Path({str(tmp_path / 'results' / 'a.json')!r}).write_text('[1]')"
    python = [sys.executable, "-S", "-c"]
    parts = {
        "tests": gpu_run.Part([*python, "print('tests/a.py::test_y FAILED [100%]'); raise SystemExit(1)"], 60),
        "slow": gpu_run.Part([*python, f"{row}; import time; print('begun'); time.sleep(60)"], 1.5),
        "good": gpu_run.Part([*python, "print('done')"], 60),
    }
    monkeypatch.setattr(gpu_run, "parts", lambda upstream: parts)
    monkeypatch.setattr(gpu_run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", f"--output={tmp_path / 'out'}"])
    with pytest.raises(SystemExit, match="1"):
        gpu_run.main()
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.partition(" after ")[0] for line in lines] == [
        "tests: failed with exit code 1",
        "slow: stopped",
        "good: done",
    ]
    assert (tmp_path / "out" / "failed_tests.txt").read_text() == "FAILED tests/a.py::test_y\n"
    assert (tmp_path / "out" / "slow.log").read_text() == "begun\n"
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == [1]


def test_the_parts_of_the_command():
    parts = gpu_run.parts(upstream=Path("checkout"))
    assert list(parts) == ["tests", "icr", "llama", "revdeq", "regress_lm"]
    assert {"tests/shared/test_on_a_gpu.py", "tests/icr/test_icr_module.py"} <= set(parts["tests"].command)
    assert parts["regress_lm"].command[-2:] == ["--upstream", "checkout"]


def test_a_part_that_fails_loses_no_rows(tmp_path, capsys):
    def measure(name):
        yield {"benchmark": f"{name} 1"}
        if name == "a":
            raise RuntimeError("CUDA error")
        yield {"benchmark": f"{name} 2"}

    path = tmp_path / "rows.json"
    assert measure_parts("ab", measure, lambda row: row["benchmark"], path, torch="2.13") == 1
    names = ["a 1", "b 1", "b 2"]
    assert json.loads(path.read_text()) == [{"benchmark": name, "torch": "2.13"} for name in names]
    out, err = capsys.readouterr()
    assert out.splitlines() == names
    assert "RuntimeError: CUDA error" in err
    assert err.endswith("failed: a\n")
    assert measure_parts("b", measure, str, None) == 0
