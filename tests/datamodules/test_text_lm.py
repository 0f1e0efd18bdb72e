"""TextLM: sources of text, packing, windows, splits, and messages for invalid input."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer

from tests.resume import BATCH_END, assert_resume_is_bitwise
from zoo.datamodules import TextLM, packing
from zoo.datamodules.packing import token_dtype
from zoo.datamodules.sources import corpus
from zoo.datamodules.windows import Windows
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import IGNORED

LINES = [f"{i} naïve cats sat\r\n" if i % 3 else f"{i} 日本\n" for i in range(400)]
TEXT = "".join(LINES)


@pytest.fixture
def make(tmp_path):
    """A function that makes a TextLM with an empty cache."""

    def make(data="pydoc", tokenizer="bytes", **options) -> TextLM:
        defaults = {"seq_len": 16, "batch_size": 4, "cache_dir": str(tmp_path / "cache")}
        return TextLM(str(data), str(tokenizer), **(defaults | options))

    return make


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "story.txt"
    file.write_bytes(TEXT.encode())
    return file


def tokens(data: TextLM, split: str) -> list[int]:
    return data.dataset(split) and data.tokens(split).tolist()


def packed(tmp_path) -> set[str]:
    """Names of the files of packed splits in the cache, complete or not."""
    return {file.name for file in (tmp_path / "cache" / "tokens").glob("*/*") if file.suffix != ".lock"}


def text(data: TextLM, split: str) -> str:
    return data.tokenizer.decode(tokens(data, split))


def test_pydoc_default_has_all_topics(make):
    from pydoc_data.topics import topics

    data = make(seq_len=64)
    data.prepare_data()
    splits = [text(data, split) for split in ("train", "val", "test")]
    assert sum(map(len, splits)) == sum(map(len, topics.values()))
    assert all(topic in "".join(splits) for topic in topics.values())
    assert sum(tokens(data, split).count(256) for split in ("train", "val", "test")) == len(topics)
    assert 0.9 < len(splits[0]) / sum(map(len, splits)) < 0.96
    inputs, targets, index, _ = next(iter(data.train_dataloader()))
    assert inputs.shape == targets.shape == (4, 64)
    assert inputs.dtype == targets.dtype == index.dtype == torch.int64


def test_text_file_is_reproduced_byte_for_byte(make, text_file):
    data = make(text_file)
    assert text(data, "train") + text(data, "val") + text(data, "test") == TEXT
    assert tokens(data, "train").count(256) == 1  # one document
    assert text(data, "val").startswith(tuple(LINES))  # cut between lines
    size = len(TEXT.encode())
    assert abs(len(text(data, "val").encode()) - size / 20) < 40


def test_stats_count_words_as_on_wikitext(make, tmp_path):
    (tmp_path / "train.txt").write_text(" = Title = \n \n a b\tc\n")
    (tmp_path / "valid.txt").write_text("é\n")
    data = make(tmp_path)
    assert data.stats("train") == {"tokens": 22, "words": 3 + 3 + 3, "bytes": 21}
    assert data.stats("val") == {"tokens": 4, "words": 2, "bytes": 3}
    with pytest.raises(ValueError, match="has no test split, only train, val"):
        data.test_dataloader()


def test_folder_without_split_names_is_one_text(make, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("b.txt", "a.md"):
        (tmp_path / "texts" / name).write_text(name + TEXT, newline="")
    data = make(tmp_path / "texts")
    joined = text(data, "train") + text(data, "val") + text(data, "test")
    assert joined == f"a.md{TEXT}b.txt{TEXT}"
    assert tokens(data, "train").count(256) == 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_table_rows_are_documents_or_lines(suffix: str, make, tmp_path):
    rows = ["NA", 'two "quoted"\nlines', "", "日本", "4"] * 40
    file = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        quoted = [row.replace('"', '""') for row in rows]
        file.write_text("id,body\n" + "".join(f'{i},"{row}"\n' for i, row in enumerate(quoted)))
    else:
        file.write_text("".join(json.dumps({"id": i, "body": row}) + "\n" for i, row in enumerate(rows)))
    data = make(file, text_column="body")
    assert text(data, "train") + text(data, "val") + text(data, "test") == "".join(rows)
    assert tokens(data, "train")[:4] == [256, *b"NA", 256]
    joined = make(file, text_column="body", join_rows=True)
    assert text(joined, "train").startswith('NA\ntwo "quoted"\nlines\n\n日本\n')
    assert tokens(joined, "train").count(256) == 1
    with pytest.raises(ValueError, match=r"no column 'text': set --data.text_column to one of id, body"):
        make(file).prepare_data()


def test_hub_data_set_keeps_its_splits(make, monkeypatch):
    import datasets

    def load_dataset(name, config, cache_dir):
        assert (name, config) == ("some/text", "small")
        rows = {"train": ["one", "two"] * 20, "validation": ["three"]}
        return datasets.DatasetDict({s: datasets.Dataset.from_dict({"text": r}) for s, r in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpus, "online", lambda: True)
    data = make("some/text:small")
    assert text(data, "train") == "onetwo" * 20
    assert tokens(data, "val") == [256, *b"three"]
    assert data.dataset("predict")[0][0][:5].tolist() == [256, *b"thre"]


def test_unknown_name_reports_folder_and_hub(make, monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpus, "online", lambda: True)
    with pytest.raises(FileNotFoundError, match=r"no text is at some/text, and the hub gave .*\(no network\)"):
        make("some/text").prepare_data()


@pytest.mark.parametrize("stride", [None, 16, 5, 1])
def test_evaluation_scores_every_token_except_the_first_exactly_once(stride, make, text_file):
    data = make(text_file, eval_stride=stride)
    stream = tokens(data, "val")
    scored = []
    for inputs, targets, index, _ in data.dataset("val"):
        start = index * (stride or 16)
        for position in (targets != IGNORED).nonzero().flatten().tolist():
            scored.append(start + position + 1)
            assert targets[position] == stream[start + position + 1]
            assert inputs[: position + 1].tolist() == stream[start : start + position + 1]
            assert index == 0 or position >= 16 - (stride or 16)
    assert scored == list(range(1, len(stream)))


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 34])
def test_windows_of_short_texts(length: int, tmp_path):
    np.arange(length, dtype=np.uint16).tofile(tmp_path / "t.bin")
    evaluation = Windows(tmp_path / "t.bin", np.uint16, 16, stride=16)
    assert [t for _, targets, _, _ in evaluation for t in targets.tolist() if t >= 0] == list(range(1, length))
    training = Windows(tmp_path / "t.bin", np.uint16, 16)
    assert len(training) == (length - 1) // 16
    for inputs, targets, index, _ in training:
        assert inputs.tolist() == list(range(16 * index, 16 * index + 16))
        assert targets.tolist() == list(range(16 * index + 1, 16 * index + 17))


def test_chunked_packing_equals_encoding_the_complete_text(make, zoo_data, monkeypatch):
    source = zoo_data / "wikitext-2" / "valid.txt"
    tokenizer = zoo_data / "stories260K" / "tok512.bin"
    monkeypatch.setattr(packing, "CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 10_000)
    data = make(source, tokenizer, test_fraction=0.0, val_fraction=0.05)
    train_text = text(data, "train")
    assert tokens(data, "train") == load_tokenizer(tokenizer).encode(train_text)
    assert source.read_text(encoding="utf-8").startswith(train_text)


@pytest.mark.parametrize("tokenizer", ["bpe", "tokenizers/gpt2_vocab.bpe"])
def test_chunks_keep_indents(tokenizer: str, make, tmp_path, monkeypatch, request):
    if tokenizer != "bpe":
        tokenizer = request.getfixturevalue("zoo_data") / tokenizer
    indented = "".join(f"{' ' * (i % 5 * 4)}if x{i}:\n\n\n" if i % 7 else "\t\treturn\n" for i in range(500))
    (tmp_path / "code.txt").write_text(indented)
    monkeypatch.setattr(packing, "CHUNK_CHARACTERS", 20)
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 60)  # some chunks have to end before an indent
    data = make(tmp_path / "code.txt", tokenizer, bpe_vocab_size=300)
    assert data.tokenizer.decode(data.tokens("predict")) == indented


def test_token_dtype_is_the_narrowest():
    types = [token_dtype(size) for size in (256, 257, 1 << 16, (1 << 16) + 1)]
    assert types == [np.uint8, np.uint16, np.uint16, np.uint32]


def test_packed_files_are_reused_for_equal_content(make, text_file, monkeypatch):
    make(text_file).prepare_data()
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_tokens", None)  # would fail if called
        make(text_file, seq_len=8).prepare_data()  # windows do not change what is packed
    text_file.write_text("something else\n" * 100)
    assert text(make(text_file), "train").startswith("something else")
    assert text(make(text_file, join_rows=True), "train").startswith("something else")


def test_concurrent_packing_gives_the_same_files(make, text_file):
    with ThreadPoolExecutor(4) as pool:
        stats = list(pool.map(lambda _: make(text_file).stats("train"), range(4)))
    assert all(s == stats[0] for s in stats)


def test_interrupted_packing_starts_again(make, text_file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(packing.os, "fsync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(text_file).prepare_data()
    assert packed(tmp_path) == set()
    assert text(make(text_file), "train")


def test_full_disk_names_folder_and_remedy(make, text_file, tmp_path, monkeypatch):
    def full(self, mode="r", *args, **options):
        return open("/dev/full" if "w" in mode else self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(packing.Path, "open", full)
        full_disk = r"/cache/.* \(No space left on device\): .* with \$ZOO_CACHE or cache_dir$"
        with pytest.raises(OSError, match=full_disk):
            make(text_file).prepare_data()
    assert packed(tmp_path) == set()
    assert text(make(text_file), "predict") == TEXT


def test_pickled_windows_map_the_file_again(make, text_file):
    dataset = make(text_file).dataset("train")
    first = dataset[0][0]
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    assert pickle.loads(data)[0][0].equal(first)


def test_bpe_is_trained_once_on_the_training_split(make, text_file, monkeypatch):
    data = make(text_file, "bpe", bpe_vocab_size=300)
    assert data.vocab_size == 300
    assert text(data, "train") + text(data, "val") + text(data, "test") == TEXT
    monkeypatch.setattr("zoo.datamodules.text_lm.train_bpe", None)  # would fail if called instead of the cache
    assert make(text_file, "bpe", bpe_vocab_size=300).tokenizer.fingerprint == data.tokenizer.fingerprint


def test_checkpoint_with_another_tokenizer_is_refused(make, text_file):
    state = make(text_file).state_dict()
    make(text_file).load_state_dict(state)
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        make(text_file, "bpe", bpe_vocab_size=300).load_state_dict(state)


def test_constructor_reads_no_files(make, tmp_path):
    data = make(tmp_path / "nowhere.txt", tmp_path / "nowhere.model")
    assert data.hparams["seq_len"] == 16
    assert all(isinstance(value, str | int | float | None) for value in data.hparams.values())


class Counts(LightningModule):
    """A bigram model: the smallest language model that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Embedding(257, 257)

    def training_step(self, batch, batch_idx: int):
        return torch.nn.functional.cross_entropy(self.logits(batch[0]).flatten(0, 1), batch[1].flatten())

    def validation_step(self, batch, batch_idx: int) -> None: ...

    def predict_step(self, batch, batch_idx: int) -> torch.Tensor:
        return batch[1][batch[1] != IGNORED]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, **quiet)


def test_predict_split_is_the_complete_text_without_splits(make, text_file, trainer, tmp_path):
    data = make(text_file)
    scored = torch.cat(trainer.predict(Counts(), data)).tolist()
    assert packed(tmp_path) == {"predict.bin", "predict.json"}
    assert [256, *scored] == [256, *TEXT.encode()] == data.tokens("predict").tolist()


def test_only_the_splits_of_a_stage_are_packed(make, text_file, trainer, tmp_path):
    trainer.validate(Counts(), make(text_file), verbose=False)
    assert packed(tmp_path) == {"val.bin", "val.json"}
    trainer.fit(Counts(), make(text_file))
    assert packed(tmp_path) == {"val.bin", "val.json", "train.bin", "train.json"}
    make(text_file).prepare_data()
    assert packed(tmp_path) == {f"{split}.{kind}" for split in ("train", "val", "test") for kind in ("bin", "json")}


def test_text_too_short_to_split_can_be_predicted(make, tmp_path, trainer):
    (tmp_path / "short.txt").write_text("a b\n")
    assert torch.cat(trainer.predict(Counts(), make(tmp_path / "short.txt"))).tolist() == [*b"a b\n"]
    with pytest.raises(ValueError, match=r"the train split of .* needs 17: lower --data.seq_len"):
        trainer.fit(Counts(), make(tmp_path / "short.txt"))


def test_resume_is_bitwise(make, text_file, tmp_path):
    data = {"num_workers": 1, "batch_size": 64}
    options = {"max_steps": 11, "max_epochs": -1, "every": 4, "hooks": (BATCH_END,), "limit_val_batches": 0}
    assert_resume_is_bitwise(Counts, lambda: make(text_file, **data), tmp_path / "runs", **options)


REFUSED = {
    "stroy.txt": (None, r"no text is at .*stroy\.txt \(did you mean .*story\.txt\?\)"),
    "empty.txt": (b"", "the train split of .* contains no text: give another file"),
    "short.txt": (b"a b\n", "has 5 tokens, but one window needs 17: lower --data.seq_len"),
    "latin.txt": (TEXT.encode() * 200 + b"caf\xe9 au lait", r"latin\.txt is not UTF-8 text: byte 0xe9 at {}"),
    "cut.txt": (b"caf\xc3", r"byte 0xc3 at offset 3"),
    "table.jsonl": (b"not a table\n", "cannot be read as a table"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_files_are_named_in_one_sentence(name: str, make, text_file, tmp_path):
    content, reason = REFUSED[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
        reason = reason.replace("{}", "offset " + str(len(TEXT.encode()) * 200 + 3))
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as error:
        make(tmp_path / name).train_dataloader()
    assert "\n" not in str(error.value)


def test_invalid_options_and_folders_are_named(make, text_file, tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="holds no text: none of its files has one of the suffixes"):
        make(tmp_path / "pictures").prepare_data()
    with pytest.raises(ValueError, match="seq_len must be at least 1, not 0"):
        make(seq_len=0)
    with pytest.raises(ValueError, match="eval_stride must be between 1 and seq_len 16, not 17"):
        make(eval_stride=17)
    with pytest.raises(ValueError, match=r"eval_stride must be a whole number, between 1 and seq_len 16, not 1\.5"):
        make(eval_stride=1.5)
    with pytest.raises(ValueError, match="val_fraction must be a fraction, not 'a'"):
        make(val_fraction="a")
    with pytest.raises(ValueError, match="both together less than 1"):
        make(val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="fewer than the 10000 of one step"):
        make(text_file, batch_size=10_000).train_dataloader()
