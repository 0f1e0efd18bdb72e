"""The wheel: one top-level package `zoo` with the data modules, callbacks and configs, which works from any folder."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.commands import MICRO, ROOT, TEXT

pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
LINKED = ("datamodules", "callbacks", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the tracked and new files."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the list of files comes from git")
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, folder / "source" / name
        if os.path.lexists(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(os.readlink(source))
            else:
                target.write_bytes(source.read_bytes())
    # The build backend alone: pip would fetch it from the network.
    script = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", script, str(folder)]
    built = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """The folder of the unpacked wheel, as site-packages would hold it."""
    folder = wheel.parent / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def zoo(folder, installed, *argv):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "zoo", *argv]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_links_point_to_the_top_level_folders():
    for name in LINKED:
        assert os.readlink(ROOT / "zoo" / name) == f"../{name}"


@pytest.mark.slow
def test_the_wheel_holds_zoo_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = [name for name in names if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in files} == {"zoo"}
    assert not any("test" in name for name in files)
    for folder, suffixes in {"datamodules": (".py", ".yaml"), "callbacks": (".py",), "configs": (".yaml",)}.items():
        sources = [p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
        assert {f"zoo/{path.as_posix()}" for path in sources} <= set(files)
    cards = {p.relative_to(ROOT).as_posix() for p in (ROOT / "zoo").glob("*/README.md")}
    assert cards
    assert cards <= set(files)
    assert "zoo/weights/regress-lm.ckpt" in files


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(installed, tmp_path):
    listed = zoo(tmp_path, installed, "list")
    assert "tiny/llama" in listed
    assert not list(tmp_path.iterdir())
    (tmp_path / "fox.txt").write_text(TEXT)
    options = [*MICRO, "--trainer.max_steps=2", "--data_dir=fox.txt", "--output_dir=run"]
    zoo(tmp_path, installed, "fit", "--config", "tiny/llama", *options)
    assert (tmp_path / "run" / "last.ckpt").exists()
    where = subprocess.run(
        [sys.executable, "-c", "import zoo; print(zoo.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert where.stdout.startswith(str(installed))


@pytest.fixture
def crowded(tmp_path, monkeypatch):
    """A working directory with names of the zoo's folders."""
    (tmp_path / "callbacks.py").write_text("raise SystemExit('the wrong callbacks')")
    for name in ("datamodules", "configs", "tiny"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')")
    (tmp_path / "configs" / "tiny").mkdir()
    (tmp_path / "configs" / "tiny" / "llama.yaml").write_text("model: {class_path: Wrong}")
    (tmp_path / "fox.txt").write_text(TEXT)
    return tmp_path


def test_files_of_the_user_hide_nothing(crowded):
    options = [*MICRO, "--trainer.max_steps=2", "--data_dir=fox.txt", "--output_dir=run"]
    assert "tiny/llama" in zoo(crowded, ROOT, "list")
    zoo(crowded, ROOT, "fit", "--config", "tiny/llama", *options)
    assert (crowded / "run" / "last.ckpt").exists()
