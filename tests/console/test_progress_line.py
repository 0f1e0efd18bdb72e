"""The progress line: its text, its speed and time left, and its output in a terminal and in a log file."""

import io
import re
import sys
from dataclasses import replace

import pytest

from tests.commands import ROOT
from zoo.console import progress_display
from zoo.console.progress_display import LogLines, TerminalLine, counting, open_display
from zoo.console.progress_text import Clock, Progress, full_line, line_with_bar

RUN = Progress(400, 2000, rate=45.23, left=36, values={"train_loss": 1.25, "tokens_per_second": 12345.6})


class Terminal(io.StringIO):
    """A terminal of 80 columns; `screen` is what it shows."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self):
        lines = [""]
        for part in re.findall(r"\r|\n|[^\r\n]+", self.getvalue()):
            if part == "\n":
                lines.append("")
                column = 0
            elif part == "\r":
                column = 0
            else:
                lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines]


def pretend_terminal(monkeypatch):
    """Standard output and standard error are one terminal, in the test that calls this."""
    shared = Terminal()
    monkeypatch.setattr(sys, "stdout", shared)
    monkeypatch.setattr(sys, "stderr", shared)
    monkeypatch.delenv("TERM", raising=False)
    return shared


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (RUN, "step 400 of 2,000, 20 %, 45.2 steps/s, 00:36 left, train_loss 1.25, tokens_per_second 12,346"),
        (Progress(7), "step 7"),
        (Progress(0, 0, "batch"), "batch 0 of 0, 100 %"),
        (Progress(3, 2), "step 3 of 3, 100 %"),
        (Progress(5, None, share=0.256, rate=0.2, left=3725.4), "step 5, 25 %, 5 s/step, 1:02:05 left"),
        (Progress(1, 3, "batch", "trial 2 of 5", "test"), "trial 2 of 5: batch 1 of 3, 33 %, test"),
        (Progress(1, 3, "batch", rate=2.68), "batch 1 of 3, 33 %, 2.68 batches/s"),
        (Progress(1999, 2000), "step 1,999 of 2,000, 99 %"),
    ],
)
def test_line_of_a_log_file(progress, line):
    assert full_line(progress) == line


def test_line_of_a_terminal_fits_into_its_width():
    assert line_with_bar(RUN, 50) == f"step 400/2,000 20 % |█{' ' * 8}| 45.2/s, 00:36 left"
    assert line_with_bar(RUN, 78) == f"step 400/2,000 20 % |████{' ' * 16}| 45.2/s, 00:36 left, train_loss 1.25"
    assert line_with_bar(RUN, 200, "#").startswith(f"step 400/2,000 20 % |{'#' * 6}{' ' * 24}| 45.2/s")
    assert line_with_bar(Progress(5, rate=2), 79) == "step 5, 2/s"
    for columns in range(1, 140):
        assert len(line_with_bar(RUN, columns)) <= columns


def test_speed_leaves_out_the_first_step_and_validations_and_the_time_left_includes_them():
    time = [0.0]
    clock = Clock(lambda: time[0])
    clock.restart(100)  # a resumed run
    time[0] = 30.0
    clock.update(101)
    assert clock.rate() is clock.left(200) is None
    for step in range(102, 112):
        time[0] += 1.0
        clock.update(step)
    assert (clock.rate(), clock.left(200)) == (1.0, 89.0)
    clock.pause()
    time[0] += 10.0
    assert clock.rate() == 1.0
    clock.resume()
    assert (clock.rate(), clock.left(200)) == (1.0, 178.0)
    assert clock.left(None) is None


def test_log_lines_have_no_control_characters(capsys):
    log = LogLines()
    assert not log.is_due()
    log.show(RUN, is_event=True)
    log.show(Progress(401, 2000), is_event=True)  # within a second of the line before
    log.close(Progress(2000, 2000))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [full_line(RUN), "step 2,000 of 2,000, 100 %"]
    assert all(line.isprintable() for line in err.splitlines())


def test_last_line_is_not_repeated(capsys):
    log = LogLines()
    log.show(RUN, is_event=True)
    log.close(replace(RUN, rate=1.5))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_terminal_shows_one_line_and_other_output_above_it(monkeypatch):
    terminal = pretend_terminal(monkeypatch)
    line = open_display()
    assert isinstance(line, TerminalLine)
    for step in range(50):
        line.show(Progress(step, 100))
    print("a message", file=sys.stderr)
    print("a result of ", end="")
    line.show(Progress(50, 100))  # would be drawn into the unfinished line
    print("two parts")
    line.show(Progress(51, 100))
    assert terminal.screen() == ["a message", "a result of two parts", line_with_bar(Progress(51, 100), 79)]
    line.close(Progress(100, 100))
    assert sys.stderr is sys.stdout is terminal
    print("the end")
    assert terminal.screen()[2:] == [line_with_bar(Progress(100, 100), 79), "the end", ""]
    assert "\x1b" not in terminal.getvalue()


def test_an_error_ends_the_line_of_a_terminal(monkeypatch):
    terminal = pretend_terminal(monkeypatch)

    def fail():
        with counting(3, "text") as add:
            add(1)
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert terminal.getvalue().endswith("\n")
    assert sys.stderr is terminal


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), (progress_display.PLAIN_VARIABLE, "1")])
def test_a_terminal_that_cannot_redraw_gets_lines(name, value, monkeypatch):
    pretend_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    assert isinstance(open_display(), LogLines)


CELL = """
import time
from zoo.console.progress_display import counting
with counting(300, "text", "sampling") as add:
    for _ in range(300):
        time.sleep(0.003)
        add(1)
"""


def test_a_notebook_shows_one_output_that_is_replaced(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the notebook packages are in the extra dev")
    nbclient = pytest.importorskip("nbclient", reason="the notebook packages are in the extra dev")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120, resources=resources).execute()
    [output] = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert re.match(rf"sampling: text 300/300 100 % \|{'█' * 30}\| [^,]+, 00:00 left$", output.data["text/plain"])


def test_counting_a_loop(capsys):
    with counting(5, "text", "sampling") as add:
        add(2)
        add(3)
    with counting(5, "text", is_shown=False) as add:
        add(5)
    assert capsys.readouterr().err.startswith("sampling: text 5 of 5, 100 %")
