"""Dockerfile and compose files agree with each other, with the README and with the pinned versions."""

import re
import shlex
from configparser import ConfigParser

import pytest
import yaml

from tests.commands import ROOT


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def instructions(name):
    """The arguments of every such instruction of the Dockerfile, as words."""
    lines = read("Dockerfile").replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{name} ")]


def pip_installs():
    """The words of every `pip install` that the Dockerfile runs."""
    lines = [" ".join(words) for words in instructions("RUN")]
    return [line.split("pip install ")[1].split() for line in lines if "pip install " in line]


def names(requirements):
    """Distribution names, without versions, extras and comments."""
    lines = [line.strip() for line in requirements.splitlines()]
    return {re.split(r"[\[<>=~!]", line)[0].lower() for line in lines if line and not line.startswith("#")}


@pytest.fixture
def compose():
    return yaml.safe_load(read("compose.yaml"))


@pytest.fixture
def setup_cfg():
    parser = ConfigParser(interpolation=None)
    parser.read_string(read("setup.cfg"))
    return parser


def test_base_is_pinned_and_new_enough(setup_cfg):
    (base,) = instructions("FROM")
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-\w+", base[0])
    assert version, base
    least = setup_cfg["options"]["python_requires"].removeprefix(">=")
    assert (int(version[1]), int(version[2])) >= tuple(map(int, least.split(".")))


def test_copies_what_exists():
    copies = instructions("COPY")
    assert copies
    for words in copies:
        *sources, _ = [word for word in words if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source


def test_installs_what_is_pinned(setup_cfg):
    pinned = names(read("constraints.txt"))
    torch, dependencies, zoo = pip_installs()
    for words in (torch, dependencies):
        assert words[words.index("--constraint") + 1] == "constraints.txt"
    assert torch[-1] == "torch"
    assert "--no-deps" in torch
    assert dependencies[-2:] == ["--editable", ".[dev]"]
    assert zoo[-3:] == ["--no-deps", "--editable", "."]
    wanted = names(setup_cfg["options"]["install_requires"]) | names(setup_cfg["options.extras_require"]["dev"])
    assert "nbclient" in wanted
    assert wanted - pinned == set()


def test_an_edit_of_the_code_does_not_rebuild_the_dependencies():
    before = read("Dockerfile").split("'.[dev]'")[0].splitlines()
    copied = {word for line in before if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied == {"constraints.txt", "setup.cfg", "pyproject.toml"}


def test_does_not_run_as_root():
    assert instructions("USER")[-1] == ["zoo"]
    assert any("useradd" in words and "zoo" in words for words in instructions("RUN"))


def test_services(compose):
    services = compose["services"]
    assert set(services) == {"zoo", "tensorboard"}
    assert services["tensorboard"]["extends"]["service"] == "zoo"
    assert set(services["zoo"]["build"]["args"]) <= declared_arguments()
    targets = [volume.rsplit("/zoo", 1)[0] for volume in services["zoo"]["volumes"] if volume.endswith(":/zoo")]
    assert targets == [".:"]
    assert instructions("WORKDIR")[-1] == ["/zoo"]
    named = {volume.split(":")[0] for volume in services["zoo"]["volumes"] if volume[0].isalpha()}
    assert named == set(compose["volumes"])


def test_gpu_overrides_what_is_there(compose):
    services = yaml.safe_load(read("compose.gpu.yaml"))["services"]
    assert set(services) == set(compose["services"])
    assert len({service["image"] for service in services.values()}) == 1
    for service in services.values():
        assert set(service["build"]["args"]) <= declared_arguments()
    (device,) = services["zoo"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_readme_names_files_and_services(compose):
    readme = read("README.md")
    commands = re.findall(r"docker compose .*", readme)
    assert any(" up " in command for command in commands)
    services = {match for command in commands for match in re.findall(r" exec (\w+)", command)}
    assert services
    assert services <= set(compose["services"])
    for name in {"notebooks/revdeq.ipynb", *re.findall(r"compose\S*\.yaml", " ".join(commands))}:
        assert name in readme
        assert (ROOT / name).exists()


def declared_arguments():
    return {words[0].split("=")[0] for words in instructions("ARG")}
