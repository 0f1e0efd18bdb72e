"""Reading a command's words before the parser exists: agreement with jsonargparse, configs by name, errors."""

import contextlib
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from zoo.cli.arguments import GROUPS, read_arguments
from zoo.cli.config_names import CONFIGS, UnknownConfigError, config_files, find_config
from zoo.errors import UserError


def parsed_by_jsonargparse(words):
    """`ckpt_path` and `output_dir` as jsonargparse reads them from the same words."""
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config")
    for name in ("ckpt_path", "output_dir"):
        parser.add_argument(f"--{name}", type=str | None)
    parser.add_argument("--model.dim", type=int)
    config = parser.parse_args(words)
    return {name: config[name] for name in ("ckpt_path", "output_dir")}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--ckpt_path=a", "--output_dir", "b"],
        ["--ckpt_path", "a", "--ckpt_path", "b"],
        ["--ckpt_path", "null"],
        ["--ckpt_path=null", "--output_dir=7"],
        ["--ckpt_path=1e3", "--output_dir=true"],
        ["--ckpt_path=a=b", "--output_dir="],
        ["--config", "one.yaml"],
        ["--config=one.yaml", "--config=two.yaml"],
        ["-c", "one.yaml", "-c", "two.yaml"],
        ["-cone.yaml"],
        ["--config=two.yaml", "--config=one.yaml", "--output_dir=typed"],
        ["--output_dir=typed", "--config=one.yaml"],
        ["--ckpt_path=typed", "--config=none.yaml"],
        ["--config=one.yaml", "--config=none.yaml"],
        ["--config=empty.yaml", "--ckpt_path=typed"],
        ["--config", "{output_dir: inline, ckpt_path: null}"],
        ["--config={output_dir: inline}", "--config=one.yaml"],
        ["--model.dim=3", "--config=one.yaml", "--model.dim", "4", "--ckpt_path", "x"],
    ],
    ids=" ".join,
)
def test_checkpoint_and_folder_agree_with_jsonargparse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("output_dir: one\nckpt_path: one.ckpt\n")
    (tmp_path / "two.yaml").write_text("output_dir: 'two words'\nmodel:\n  dim: 3\n")
    (tmp_path / "none.yaml").write_text("output_dir: null\nckpt_path: ~\n")
    (tmp_path / "empty.yaml").write_text("{}")
    read = read_arguments(words)
    before = {"ckpt_path": None, "output_dir": None} | read.values
    assert before == parsed_by_jsonargparse(words) == parsed_by_jsonargparse(read.words)


def test_every_listed_name_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"tiny/llama", "icr", "sst/llama", "ddp"} <= set(config_files())
    for name in config_files():
        assert find_config(name) == CONFIGS / f"{name}.yaml"


@pytest.mark.parametrize("words", [["--config", "tiny/llama"], ["--config=tiny/llama"], ["-c", "tiny/llama"]])
def test_a_name_becomes_its_file(words):
    path = CONFIGS / "tiny" / "llama.yaml"
    read = read_arguments([*words, "--config=ddp"])
    assert read.words == [f"--config={path}", f"--config={CONFIGS / 'ddp.yaml'}"]
    assert read.class_paths == {"model": ["LlamaLM"], "data": ["TextLM"]}
    assert ("model.init_args.dim", str(path)) in read.keys


def test_a_folder_or_file_of_the_user_does_not_hide_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "llama").mkdir(parents=True)
    (tmp_path / "configs" / "tiny").mkdir(parents=True)
    (tmp_path / "configs" / "tiny" / "llama.yaml").write_text("output_dir: mine")
    (tmp_path / "icr").write_text("output_dir: mine")
    assert find_config("tiny/llama") == CONFIGS / "tiny" / "llama.yaml"
    assert find_config("icr") == CONFIGS / "icr.yaml"
    assert find_config("./icr").read_text() == "output_dir: mine"
    assert find_config("configs/tiny/llama.yaml").read_text() == "output_dir: mine"


def test_an_unknown_config_suggests_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny/lama", "tiny/lama.yaml", "configs/tiny/lama.yaml"):
        with pytest.raises(UnknownConfigError, match=r"did you mean tiny/llama\?"):
            find_config(name)
    with pytest.raises(UnknownConfigError, match="zoo list"):
        find_config("xyz")


def test_yaml_errors_name_the_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("model:\n  dim: [1\n")
    with pytest.raises(UserError, match=r"bad\.yaml is not valid YAML at line 3"):
        read_arguments(["--config", str(path)])


def test_classes_and_keys_are_collected():
    words = [
        "--model",
        "LlamaLM",
        "--model.class_path=RevDEQLM",
        "--data=my.module.Data",
        "--model.dim",
        "3",
        "--compile",
    ]
    read = read_arguments(words)
    assert read.class_paths == {"model": ["LlamaLM", "RevDEQLM"], "data": ["my.module.Data"]}
    assert ("model.dim", "") in read.keys
    assert read.words == [*words[:-1], "--compile=true"]


# ---- damaged and hostile configs


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model:\n  dim: \xff", r"bad\.yaml is not UTF-8 text: byte 0xff at offset 14 is invalid; convert the file"),
        ("model: 1".encode("utf-16"), r"bad\.yaml is not UTF-8 text.*it looks like UTF-16"),
        (b"- " * 30_000, r"bad\.yaml is not valid YAML at line 1: it is nested more than 100 levels deep"),
        (b"model:\n  dim: 3\n  dim: 4", r"bad\.yaml is not valid YAML at line 3: the key 'dim' occurs twice"),
        (b"a: &a [*a]", r"bad\.yaml is not valid YAML at line 1: the alias \*a is inside"),
        (b"seed_everything: " + b"9" * 5000, r"bad\.yaml is not valid YAML at line 1: an integer has 5000 digits"),
        (b"model:\0", r"bad\.yaml is not valid YAML: unacceptable character #x0000"),
        (b"- a", r"bad\.yaml holds no settings"),
        (b"text", r"bad\.yaml holds no settings"),
        (b"", r"bad\.yaml is empty"),
        (b"1: 2", r"bad\.yaml has the setting 1: the name of a setting must be a text"),
        (b"ckpt_path: 3", r"bad\.yaml: ckpt_path must be a text, not 3: put it in quotes"),
        (b"output_dir: [a]", r"bad\.yaml: output_dir must be a text"),
        (b"model: [1]", r"bad\.yaml: model must be a mapping of names to values, not \[1\]"),
        (b"trainer: 3", r"bad\.yaml: trainer must be a mapping"),
        (b"model: {class_path: [1]}", r"bad\.yaml: model\.class_path must be the name of a class, not \[1\]"),
        (b"model: {init_args: [1]}", r"bad\.yaml: model\.init_args must be a mapping"),
        (b"model: {dict_kwargs: {1: 2}}", r"bad\.yaml: model\.dict_kwargs has the setting 1"),
        (b"#" * 2_000_000, r"bad\.yaml is too large: 2000000 bytes"),
        (b"model: /dev/zero", "/dev/zero is a device: give a regular file"),
    ],
    ids=range(20),
)
def test_damaged_configs_are_refused_by_name(content, reason, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        read_arguments(["--config", str(tmp_path / "bad.yaml")])
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_arguments_are_utf8():
    with pytest.raises(UserError, match="contains bytes that are not UTF-8: rename the file"):
        read_arguments(["--data_dir=\udcff"])


def test_only_regular_files_are_configs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for words in (["--config", str(tmp_path / "pipe")], ["--model", str(tmp_path / "pipe")], ["-c/dev/zero"]):
        with pytest.raises(UserError, match=r"is a (pipe|device): give a regular file"):
            read_arguments(words)
    with pytest.raises(UserError, match="is a folder"):
        read_arguments([f"--config={tmp_path}"])
    for name in ("x" * 5000, "a\0b", "", "\udcff"):
        with pytest.raises(UnknownConfigError):
            find_config(name)


@settings(
    derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(sorted(config_files())),
    st.integers(0, 1500),
    st.binary(max_size=2) | st.sampled_from([b"&a ", b"*a", b"<<: ", b"[" * 200, b"1: 2\n", b"model: 3\n", b"!!int "]),
    st.integers(0, 30),
)
def test_a_mutated_config_is_read_or_refused(tmp_path, name, at, insert, removed):
    content = config_files()[name].read_bytes()
    path = tmp_path / "mutated.yaml"
    path.write_bytes(content[:at] + insert + content[at + removed :])
    with contextlib.suppress(UserError):
        read_arguments([f"--config={path}"])


# ---- files with the settings of one group


def test_groups_are_read_from_files_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.yaml").write_text("class_path: LlamaLM\ninit_args: {dim: 16}")
    (tmp_path / "sub" / "all.yaml").write_text("model: model.yaml\ntrainer: {max_steps: 3}")
    monkeypatch.chdir(tmp_path)
    inline = "--config={model: {class_path: LlamaLM, init_args: {dim: 16}}}\n"
    typed = read_arguments(["--model", "sub/model.yaml", "--model=sub/model.yaml", "--seed_everything=1"])
    assert typed.words == [inline, inline, "--seed_everything=1"]
    assert typed.class_paths["model"] == ["LlamaLM"] * 2
    assert ("model.init_args.dim", "sub/model.yaml") in typed.keys
    read = read_arguments(["--config", "sub/all.yaml"])
    assert read.class_paths["model"] == ["LlamaLM"]
    assert yaml.safe_load(read.words[0].removeprefix("--config=")) == {
        "model": {"class_path": "LlamaLM", "init_args": {"dim": 16}},
        "trainer": {"max_steps": 3},
    }


def test_every_group_of_the_command_line_may_be_a_file():
    from zoo.cli.command_line import CALLBACKS

    assert {"model", "data", "trainer", *CALLBACKS} == set(GROUPS)
