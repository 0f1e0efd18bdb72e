"""Reading a command's words before the parser exists: agreement with jsonargparse, configs by name, errors."""

import pytest
from jsonargparse import ArgumentParser

from zoo.cli.arguments import read_arguments
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
