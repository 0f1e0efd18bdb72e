"""`zoo pull` from a stand-in of the hub: digests, resuming, refusals, and commands with `zoo:NAME` afterwards."""

import json
from pathlib import Path

import pytest

from tests.commands import complaint
from zoo.__main__ import main
from zoo.errors import UserError
from zoo.hub.pull import Snapshot, choose_files
from zoo.llama import Llama, LlamaConfig, save_checkpoint
from zoo.tokenizers import load_tokenizer
from zoo.weights import find_weights, weights_rows

REPOSITORY = "someone/tiny-llama"


@pytest.fixture
def llama_folder(tmp_path):
    """A Hugging Face folder of a small Llama with a byte-level tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "llama"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    save_checkpoint(Llama(LlamaConfig(vocab_size=256, dim=32, n_layers=2, n_heads=2, max_seq_len=64)), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def publish(hub, folder, repository=REPOSITORY):
    hub.repositories[repository] = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.large.add("model.safetensors")


def test_a_pulled_llama_is_read_by_its_name(hub, llama_folder, capsys):
    publish(hub, llama_folder)
    hub.repositories[REPOSITORY] |= {"pytorch_model.bin": b"pickle", "code.py": b"raise SystemExit", "README.md": b"#"}
    assert main(["pull", REPOSITORY]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"zoo:{REPOSITORY}\n"
    assert "\r" not in captured.err
    assert sorted(hub.downloads) == ["config.json", "model.safetensors", "tokenizer.json"]
    folder = Path(find_weights(f"zoo:{REPOSITORY}"))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / name).read_bytes() == (llama_folder / name).read_bytes()
    # A command reads model and tokenizer by the name, and the same text follows as from the folder.
    options = ["--prompt=The", "--max_new_tokens=8", "--temperature=0", "--trainer.accelerator=cpu"]
    assert main(["generate", f"--ckpt_path=zoo:{REPOSITORY}", *options]) == 0
    pulled = capsys.readouterr().out
    assert main(["generate", f"--ckpt_path={llama_folder}", *options]) == 0
    assert pulled == capsys.readouterr().out
    assert load_tokenizer(f"zoo:{REPOSITORY}").encode("abc") == load_tokenizer(llama_folder).encode("abc")
    assert f"zoo:{REPOSITORY}" in [row["name"] for row in weights_rows()]
    # A second pull downloads nothing.
    n_downloads = len(hub.downloads)
    assert main(["pull", REPOSITORY]) == 0
    assert len(hub.downloads) == n_downloads


def test_a_changed_file_is_refused_and_pulled_again(hub, llama_folder, capsys, tmp_path):
    publish(hub, llama_folder)
    assert main(["pull", REPOSITORY]) == 0
    weights = tmp_path / "cache" / "weights" / REPOSITORY / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"differs from its digest: run `zoo pull {REPOSITORY}` again"):
        find_weights(f"zoo:{REPOSITORY}")
    weights.write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes, not"):
        find_weights(f"zoo:{REPOSITORY}")
    assert main(["pull", REPOSITORY]) == 0
    assert weights.read_bytes() == content


def test_an_interrupted_download_continues(hub, llama_folder, capsys, tmp_path, monkeypatch):
    publish(hub, llama_folder)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 8192)
    hub.cut_after = 20_000
    said = complaint_of_pull(capsys)
    assert "a download continues" in said
    assert find_list(tmp_path) is None
    hub.cut_after = None
    assert main(["pull", REPOSITORY]) == 0
    assert [name for name, _ in hub.ranges][-1:] == ["model.safetensors"]
    start = int(hub.ranges[-1][1].removeprefix("bytes=").rstrip("-"))
    assert start >= 16384  # what the interrupted command has received
    assert find_weights(f"zoo:{REPOSITORY}")


def complaint_of_pull(capsys):
    assert main(["pull", REPOSITORY]) == 1
    return capsys.readouterr().err


def find_list(tmp_path):
    return next(iter((tmp_path / "cache" / "weights").glob("*/*/zoo_pull.json")), None)


def test_content_that_differs_from_the_hubs_digest_is_refused(hub, llama_folder, capsys, tmp_path):
    publish(hub, llama_folder)
    hub.is_damaged = True
    assert "differs from its digest on the hub, and was removed" in complaint_of_pull(capsys)
    assert find_list(tmp_path) is None


def test_a_model_of_another_kind_is_refused_before_its_weights(hub, llama_folder, capsys):
    publish(hub, llama_folder)
    config = json.loads((llama_folder / "config.json").read_bytes()) | {"model_type": "gpt2", "n_embd": 32}
    hub.repositories[REPOSITORY]["config.json"] = json.dumps(config).encode()
    said = complaint_of_pull(capsys)
    assert "gpt2" in said
    assert "model.safetensors" not in hub.downloads


def test_public_weights_come_with_the_tokenizer_of_llama_2(hub, zoo_data, capsys):
    """stories15M is represented by stories260K; the tokenizer is the real one, whose digest the zoo knows."""
    hub.repositories["karpathy/tinyllamas"] = {
        "stories15M.bin": (zoo_data / "stories260K" / "stories260K.bin").read_bytes(),
        "stories15M.pt": b"pickle",
    }
    tokenizer = (zoo_data / "tokenizers" / "llama2_tokenizer.model").read_bytes()
    hub.repositories["TinyLlama/TinyLlama-1.1B-Chat-v1.0"] = {"tokenizer.model": tokenizer}
    hub.large |= {"stories15M.bin", "tokenizer.model"}
    assert "run `zoo pull stories15M` first" in complaint(capsys, 1, "generate", "--ckpt_path=zoo:stories15M")
    assert main(["pull", "stories15M"]) == 0
    assert find_weights("zoo:stories15M").endswith("stories15M.bin")
    assert load_tokenizer("zoo:stories15M").vocab_size == 32000
    # Another tokenizer than the zoo knows is refused.
    hub.repositories["TinyLlama/TinyLlama-1.1B-Chat-v1.0"] = {"tokenizer.model": tokenizer[:-1] + b"x"}
    assert main(["pull", "stories42M"]) == 1
    hub.repositories["karpathy/tinyllamas"]["stories42M.bin"] = b"x"
    assert main(["pull", "stories42M"]) == 1
    assert "tokenizer.model of TinyLlama/TinyLlama-1.1B-Chat-v1.0 differs" in capsys.readouterr().err


def test_wrong_names_are_refused_in_one_sentence(hub, capsys, monkeypatch):
    assert "neither one of stories15M" in complaint(capsys, 1, "pull", "tiny")
    assert "comes with the zoo" in complaint(capsys, 1, "pull", "regress-lm")
    assert "the hub has no repository a/b" in complaint(capsys, 1, "pull", "a/b")
    for name in ("../x", "a/..", "a/b/c", "/etc/passwd", ""):
        assert "nor a repository" in complaint(capsys, 1, "pull", name)
    assert "needs name" in complaint(capsys, 2, "pull")
    assert "run `zoo pull a/b` first" in complaint(capsys, 1, "validate", "--ckpt_path=zoo:a/b")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in complaint(capsys, 1, "pull", "a/b")


@pytest.mark.parametrize(
    ("names", "chosen", "entry"),
    [
        (["best.ckpt", "last.ckpt", "README.md"], ["best.ckpt"], "best.ckpt"),
        (["config.json", "model.safetensors", "model-00001-of-00002.safetensors"], ["config.json", "model.safetensors"],
         "."),
        (["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "merges.txt"],
         ["config.json", "merges.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json"], "."),
        (["model.bin", "tok512.bin", "model.pt"], ["tok512.bin", "model.bin"], "model.bin"),
    ],
)  # fmt: skip
def test_only_files_that_the_zoo_reads_are_chosen(names, chosen, entry):
    assert choose_files(Snapshot("a/b", "", dict.fromkeys(names))) == (chosen, entry)


@pytest.mark.parametrize("names", [["config.json", "pytorch_model.bin"], ["model.pt"], ["a/model.safetensors"], []])
def test_a_repository_without_such_files_is_refused(names):
    with pytest.raises(UserError, match="a/b has no weights that the zoo reads"):
        choose_files(Snapshot("a/b", "", dict.fromkeys(names)))


@pytest.mark.parametrize(
    "listed",
    ["", "[]", "{", '{"entry": ".", "files": {"../x": [1, "a"]}}', '{"entry": ".", "files": {"/x": [1, "a"]}}',
     '{"entry": "y", "files": {"x": [1, "a"]}}', '{"entry": ".", "files": {"x": ["1", "a"]}}', "[" * 10**5],
)  # fmt: skip
def test_a_damaged_list_of_a_download_counts_as_none(listed, hub, tmp_path):
    folder = tmp_path / "cache" / "weights" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "zoo_pull.json").write_text(listed)
    with pytest.raises(UserError, match="run `zoo pull a/b` first"):
        find_weights("zoo:a/b")
    assert "zoo:a/b" not in [row["name"] for row in weights_rows()]


def test_a_pull_after_an_interrupted_one_of_another_state_has_its_files_only(hub, llama_folder, capsys, tmp_path):
    publish(hub, llama_folder)
    hub.repositories[REPOSITORY]["tokenizer.json"] = b"{}"
    hub.cut_after = 16384
    complaint_of_pull(capsys)
    hub.cut_after = None
    del hub.repositories[REPOSITORY]["tokenizer.json"]
    assert main(["pull", REPOSITORY]) == 0
    (listed,) = (tmp_path / "cache" / "weights").glob("*/*/zoo_pull.json")
    names = {path.name for path in listed.parent.iterdir()}
    assert names == {*json.loads(listed.read_bytes())["files"], "zoo_pull.json"}
    assert "tokenizer.json" not in names
