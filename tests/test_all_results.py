"""benchmarks/all_results.py knows every file of results/, and its commands have options that their scripts have."""

import contextlib
import json
import os
import re
import shlex
import threading

import pytest

from benchmarks.all_results import STUDIES, run, words_of
from tests.commands import ROOT


def test_every_row_is_made_by_a_study():
    scripts = {study.script for study in STUDIES}
    for path in (ROOT / "results").glob("*.json"):
        for row in json.loads(path.read_text(encoding="utf-8")):
            script = row["command"].split()[1].removeprefix("benchmarks/")
            assert script in scripts, f"{path.name}: name benchmarks/{script} in STUDIES of benchmarks/all_results.py"


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.command.split(" --")[0])
def test_commands_have_known_options(study):
    source = (ROOT / "benchmarks" / study.script).read_text(encoding="utf-8")
    for command in filter(None, (study.command, study.small)):
        own = command.split(" -- ")[0]
        options = {word for word in shlex.split(own) if word.startswith("--") and not word.startswith("--trainer.")}
        assert options <= set(re.findall(r'"(--\w+)"', source))


def test_a_study_is_stopped_with_its_children_when_the_time_is_over(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # The child keeps the pipe open for writing as long as it lives.
    child = f"open({str(pipe)!r}, 'w').write('started'); import time; time.sleep(600)"
    wait = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    (tmp_path / "benchmarks" / "wait.py").write_text(wait)
    (tmp_path / "benchmarks" / "fail.py").write_text("raise SystemExit(3)")
    reader = threading.Thread(target=pipe.read_text)
    reader.start()
    assert run(["wait.py"], tmp_path, 3)[0] is None
    with contextlib.suppress(OSError):  # opened already
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert run(["fail.py"], tmp_path, 600)[0] == run(["fail.py"], tmp_path)[0] == 3


def test_a_study_without_its_data_is_left_out(tmp_path):
    (tmp_path / "timm").mkdir()
    places = {"data": tmp_path, "upstream": None, "encoder": None}
    assert words_of("x.py --data_dir {data}/timm", places, ("timm",)) == (
        ["x.py", "--data_dir", f"{tmp_path}/timm"],
        "",
    )
    assert words_of("x.py --data_dir {data}", places, ("timm", "sst"))[1] == f"{tmp_path} has no sst"
    assert words_of("x.py --upstream {upstream}", places, ()) == ([], "--upstream is not given")
    assert words_of("x.py {data}", places | {"data": None}, ())[1] == "--data is not given"
