"""tokenizer.json and its folder: control tokens in texts, BOS, equality with transformers, damaged files."""

import base64
import copy
import json
import os
import re
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zoo.errors import UserError
from zoo.tokenizers import from_state, load_tokenizer, train_bpe

CORPUS = ["the cat sat on the mat, the cat sat on the hat", "a naïve café <b>bold</b> [x]"] * 20
CONTROL = ["<unk>", "<s>", "</s>"]
TEXTS = [
    "the cat sat",
    "  two  spaces ",
    "",
    "日本 😀 é\n\tx",
    "</s> <s><unk>",
    "a<tool>b the hat",
    "<|im|> x",
    "\U0010fffe</s>",
]
FUZZ = settings(
    derandomize=True, deadline=None, database=None, max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip


def byte_level_bpe() -> Tokenizer:
    """In the shape of Llama 3's: control tokens after the vocabulary, BOS by a template."""
    tokenizer = Tokenizer.from_str(train_bpe(CORPUS, 300).state()["model"])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), starting_with_bos(bos)])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=CONTROL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = starting_with_bos(1)
    return tokenizer


def word_level() -> Tokenizer:
    words = sorted({word for text in CORPUS for word in text.split()})
    ids = {word: i for i, word in enumerate(CONTROL + words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer


def llama2_bpe() -> Tokenizer:
    """A BPE in the shape of Llama 2's: characters, bytes for unknown ones, control tokens in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=CONTROL + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(CONTROL)]
    return Tokenizer.from_str(json.dumps(content))


def starting_with_bos(bos: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", bos)])


SHAPES = {make.__name__: make() for make in (byte_level_bpe, unigram, word_level, llama2_bpe)}


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers(name: str, tmp_path):
    """Ids equal those of transformers that splits special tokens, except that control tokens stay text everywhere."""
    transformers = pytest.importorskip("transformers")
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=SHAPES[name], bos_token="<s>", eos_token="</s>", split_special_tokens=True
    )
    peer.add_tokens([AddedToken("<tool>"), AddedToken("hat", lstrip=True, single_word=True)])
    peer.add_special_tokens({"additional_special_tokens": ["<|im|>"]})
    peer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == len(peer)
    control = {peer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<|im|>")}
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not control.intersection(tokenizer.encode(text, bos=False))
        if not control.intersection(peer(text, add_special_tokens=False).input_ids) and "\U0010fffe" not in text:
            assert ids == peer(text).input_ids
        assert tokenizer.decode(ids) == peer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", SHAPES)
def test_names_of_control_tokens_in_a_text_stay_text(name: str, tmp_path):
    SHAPES[name].save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the cat</s><s> </s>", eos=True)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids[1:-1])
    if name != "word_level":  # whose vocabulary has only words
        assert tokenizer.decode(ids) == "the cat</s><s> </s>"
    restored = from_state(tokenizer.state())
    assert restored.encode("the cat</s><s> </s>", eos=True) == ids


def test_bpe_that_merges_to_a_control_token_stops_before_it(tmp_path):
    content = json.loads(SHAPES["llama2_bpe"].to_str())
    content["model"]["vocab"]["</"] = len(content["model"]["vocab"])
    content["model"]["vocab"]["s>"] = len(content["model"]["vocab"])
    content["model"]["merges"] += [["<", "/"], ["s", ">"], ["</", "s>"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert 2 not in tokenizer.encode("</s>")
    assert tokenizer.decode(tokenizer.encode("</s>")) == "</s>"


@pytest.mark.parametrize(
    ("config", "has_template", "expected"),
    [
        (None, False, True),  # a bare file: BOS by its usual name
        ({"bos_token": "<s>"}, False, False),
        ({"bos_token": "<s>"}, True, True),
        ({"bos_token": "<s>", "add_bos_token": True}, False, True),
        ({"bos_token": "<s>", "add_bos_token": False}, True, False),
        ({"bos_token": None}, False, False),
    ],
)
def test_bos_follows_add_bos_token_then_the_template(config, has_template, expected, tmp_path):
    content = json.loads(SHAPES["unigram"].to_str())
    if not has_template:
        content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.encode("cat")[0] == 1) == expected
    restored = from_state(tokenizer.state())
    assert restored.encode("cat") == tokenizer.encode("cat")
    assert restored.fingerprint == tokenizer.fingerprint


def test_add_bos_token_of_a_sentencepiece_folder(zoo_data, tmp_path):
    source = zoo_data / "tokenizers" / "llama2_tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": False}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the cat") == load_tokenizer(source).encode("the cat", bos=False)
    assert from_state(tokenizer.state()).encode("the cat") == tokenizer.encode("the cat")


def test_tokens_that_only_the_configuration_adds_are_refused(tmp_path):
    SHAPES["word_level"].save(str(tmp_path / "tokenizer.json"))
    n = SHAPES["word_level"].get_vocab_size()
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "[PAD]", "added_tokens_decoder": {str(n): {"content": "<|im|>", "special": True}}})
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": n + 1}))
    assert load_tokenizer(tmp_path).vocab_size == n  # special tokens do not change how a text is encoded
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": n + 1}))
    with pytest.raises(UserError, match="its folder adds the token '<tool>'"):
        load_tokenizer(tmp_path)


def test_ids_beyond_the_size_of_the_file_are_refused(tmp_path):
    content = json.loads(SHAPES["llama2_bpe"].to_str())
    content["model"]["vocab"]["the"] = 4294967294
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "vocab.json").write_text('{"a": 4294967294}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        with pytest.raises(UserError, match=r"the id 4294967294, which is not a whole number below \d+") as error:
            load_tokenizer(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_keys_that_occur_twice_are_refused(name, tmp_path):
    (tmp_path / "tokenizer.json").write_text(SHAPES["word_level"].to_str())
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    content = SHAPES["word_level"].to_str().replace('"vocab":{', '"vocab":{"cat":1,"cat":2,')
    texts = {"vocab.json": '{"cat": 0, "cat": 1}', "tokenizer_config.json": '{"bos_token": "a", "bos_token": "b"}'}
    (tmp_path / name).write_text(texts.get(name, content))
    with pytest.raises(UserError, match=r"its key '(cat|bos_token)' occurs twice") as error:
        load_tokenizer(tmp_path / name if name == "vocab.json" else tmp_path)
    assert str(tmp_path) in str(error.value)


def test_scores_of_pieces_are_finite(zoo_data, tmp_path):
    content = json.loads(SHAPES["unigram"].to_str())
    content["model"]["vocab"][1][1] = float("nan")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    data = bytearray((zoo_data / "stories260K" / "tok512.bin").read_bytes())
    data[4:8] = struct.pack("<f", float("nan"))
    (tmp_path / "tok512.bin").write_bytes(data)
    for name, message in (("tokenizer.json", r"\[token, finite score\]"), ("tok512.bin", "score of token 0 is not f")):
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path / name)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="a device or a pipe"):
        load_tokenizer(tmp_path / "tokenizer.json")


# ---- damaged files: every mutation gives a tokenizer, or one sentence that names the file

VALUES = st.sampled_from([
    None, True, -1, 0, 2, 2**32 - 2, 10**30, 0.5, float("nan"), "", "a", "<s>", "\ud800", "BPE", [], {}, [[]],
    ["a", "b"], ["a", 1.0], {"String": ""}, {"Regex": "("}, {"type": "BPE"},
])  # fmt: skip


@st.composite
def mutated(draw, original):
    """A JSON value with one to three places changed, removed or added."""
    content = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = content, None
        # Walk down to a random place; large vocabularies are cut to their first entries.
        while isinstance(parent, dict | list) and parent:
            keys = list(parent)[:30] if isinstance(parent, dict) else range(min(len(parent), 30))
            key = draw(st.sampled_from(keys))
            if not isinstance(parent[key], dict | list) or draw(st.integers(0, 3)) == 0:
                break
            parent = parent[key]
        if not parent:
            continue
        if draw(st.integers(0, 4)):
            parent[key] = copy.deepcopy(draw(VALUES))
        else:
            del parent[key]
    return content


def check(load, *names: str) -> None:
    """Load and use a tokenizer; every failure is a UserError of one line with one of the names."""
    failure = None
    try:
        tokenizer = load()
        assert tokenizer.vocab_size < 10_000
        ids = tokenizer.encode("the cat é 日本 </s> <s>", eos=True)
        tokenizer.decode([*ids, *range(min(tokenizer.vocab_size, 20))])
        tokenizer.encode_batch(["x", ""], continued=True)
    except UserError as error:
        failure = str(error)
    if failure is not None:
        assert "\n" not in failure
        assert re.search("|".join(map(re.escape, names)), failure)


@FUZZ
@given(data=st.data(), name=st.sampled_from(list(SHAPES)))
def test_mutated_tokenizer_json(data, name: str, tmp_path):
    content = data.draw(mutated(json.loads(SHAPES[name].to_str())))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "add_bos_token": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(data.draw(mutated(config) | st.just(config))))
    check(lambda: load_tokenizer(tmp_path), str(tmp_path))


@FUZZ
@given(data=st.data())
def test_mutated_state_of_a_checkpoint(data):
    content = SHAPES["unigram"].to_str()
    state = {"kind": "huggingface", "model": content, "bos_id": 1, "eos_id": 2, "adds_bos": 1}
    kind = data.draw(st.sampled_from(["huggingface", "llama2c", "sentencepiece"]))
    if kind != "huggingface":
        model = data.draw(st.binary(max_size=40).map(lambda b: base64.b64encode(b).decode()) | st.text(max_size=9))
        state |= {"kind": kind, "model": model}
    damaged_state = data.draw(mutated(state) | st.just(state))
    check(lambda: from_state(damaged_state), "token", "SentencePiece")


@FUZZ
@given(data=st.data(), place=st.floats(0, 1), replacement=st.binary(max_size=4), width=st.integers(0, 9))
def test_mutated_bytes_of_every_file_type(data, place: float, replacement: bytes, width: int, tmp_path):
    bpe = json.loads(SHAPES["byte_level_bpe"].to_str())["model"]
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), b" ", b"th"]
    files = {
        "vocab.json": json.dumps(bpe["vocab"]).encode(),
        "merges.txt": "\n".join(" ".join(merge) for merge in bpe["merges"]).encode(),
        "tok.bin": bytes(4) + b"".join(bytes(4) + len(piece).to_bytes(4, "little") + piece for piece in pieces),
        "tokenizer.json": SHAPES["llama2_bpe"].to_str().encode(),
    }
    name = data.draw(st.sampled_from(list(files)))
    at = int(place * len(files[name]))
    files[name] = files[name][:at] + replacement + files[name][at + width :]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    check(lambda: load_tokenizer(tmp_path / name), str(tmp_path))
