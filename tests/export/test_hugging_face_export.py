"""`zoo export --format hf` and gguf: transformers gives the same tokens and logits, for each kind of tokenizer."""

import io
import json

import pytest
import torch

from zoo.cli.export import load_module
from zoo.errors import UserError
from zoo.export import export_module
from zoo.export.tokenizer_json import SAMPLES, tokenizer_files
from zoo.generation.sampling import generate
from zoo.llama import LlamaLM, load_checkpoint
from zoo.tokenizers import load_tokenizer, train_bpe, train_words
from zoo.tokenizers.llama2c import Llama2cTokenizer
from zoo.tokenizers.sentence_piece import SentencePieceTokenizer

TEXT = "Once upon a time, there was a tree. The tree was old, naïve and 東 tall.\n"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def sentence_piece(**options):
    """A SentencePiece model of TEXT with bytes, by default with the rules of Llama 2."""
    import sentencepiece

    rules = {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    model = io.BytesIO()
    texts = iter([TEXT.strip()] * 4)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **rules | options)
    return SentencePieceTokenizer(model.getvalue())


def unigram():
    """A SentencePiece model with the default rules: Unicode normalization, spaces removed, unknown characters."""
    rules = {"byte_fallback": False, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
    return sentence_piece(model_type="unigram", **rules)


def llama2c():
    from zoo.export.pieces import llama2c_bytes, pieces_of

    return Llama2cTokenizer(llama2c_bytes(pieces_of(sentence_piece())))


KINDS = {
    "bytes": lambda: load_tokenizer("bytes"),
    "characters": lambda: load_tokenizer("characters"),
    "bpe": lambda: train_bpe([TEXT], 300),
    "words": lambda: train_words([TEXT]),
    "sentencepiece": sentence_piece,
    "unigram": unigram,
    "spaces removed": lambda: sentence_piece(remove_extra_whitespaces=True, add_dummy_prefix=False),
    "llama2c": llama2c,
}


def new_module(tokenizer, seed=0, **settings):
    """A LlamaLM with large random weights, so that its logits differ clearly."""
    torch.manual_seed(seed)
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64} | settings
    module = LlamaLM(vocab_size=tokenizer.vocab_size, tokenizer=tokenizer, **sizes).eval()
    for parameter in module.model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return module


def continuation(module, ids):
    """Greedy ids as `zoo generate` stops them, without the id that ends the text."""
    tokenizer = module.tokenizer
    stops = {tokenizer.bos_id, tokenizer.eos_id, *(module.model.config.stop_tokens or ())} - {None}
    new = generate(module.model, torch.tensor([ids]), 12, temperature=0)[0, len(ids) :].tolist()
    return new[: next((at for at, i in enumerate(new) if i in stops), len(new))]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_files_give_the_same_ids(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = KINDS[kind]()
    for name, text in tokenizer_files(tokenizer, 128).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    peer, again = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert (again.bos_id, again.eos_id, again.vocab_size) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)
    for text in (*SAMPLES, TEXT, TEXT[5:], "  x", "</s>a<s>", "☃☃ ☃ <unk>"):
        ids = tokenizer.encode(text)
        assert peer(text).input_ids == ids, text
        assert again.encode(text) == ids, text
        assert again.encode(text, bos=False) == tokenizer.encode(text, bos=False), text
        assert again.decode(ids) == tokenizer.decode(ids), text


SHAPES = {
    "tied": ("bpe", {}),
    "untied, padded": ("sentencepiece", {"tie_embeddings": False, "n_kv_heads": 2, "padded_vocab_size": 640}),
    "rotary scaling": ("llama2c", {"rope_scaling": LLAMA3, "rope_theta": 5000.0, "n_kv_heads": 1, "norm_eps": 1e-6}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_hf_folder_in_transformers_and_in_the_zoo(shape, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind, settings = SHAPES[shape]
    module = new_module(KINDS[kind](), **settings)
    export_module(module, "hf", tmp_path / "new" / "hf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "hf").eval()
    encoder = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "hf")
    ids, expected = module.tokenizer.encode("Once upon"), module.model(torch.arange(20)[None])[0]
    with torch.no_grad():
        torch.testing.assert_close(peer(torch.arange(20)[None]).logits, expected, rtol=1e-5, atol=1e-5)
    greedy = continuation(module, ids)
    inputs = encoder("Once upon", return_tensors="pt").input_ids
    assert inputs[0].tolist() == ids
    out = peer.generate(inputs, max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    stop = out[-1:] if len(out) > len(greedy) else []
    assert out == greedy + stop
    # The zoo reads the folder with the same settings and continues the prompt with the same text.
    again, _ = load_module(str(tmp_path / "new" / "hf"))
    assert torch.equal(again.model(torch.arange(20)[None])[0], expected)
    assert continuation(again, again.tokenizer.encode("Once upon")) == greedy
    assert again.model.config.vocab_size == module.tokenizer.vocab_size


@pytest.mark.parametrize("shape", ["tied", "untied, padded", "bytes"])
def test_gguf_file_is_read_by_gguf_and_transformers(shape, tmp_path):
    gguf = pytest.importorskip("gguf", reason="writing GGUF needs the extra export")
    kind, settings = SHAPES.get(shape, ("bytes", {"n_kv_heads": 2}))
    module = new_module(KINDS[kind](), **settings)
    file = tmp_path / "model.gguf"
    assert list(export_module(module, "gguf", file)) == [str(file)]
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    own = module.model.state_dict()
    size = module.tokenizer.vocab_size  # rows of padding are left out
    assert torch.equal(torch.tensor(tensors["token_embd.weight"].data), own["tok_embeddings.weight"][:size])
    assert torch.equal(torch.tensor(tensors["blk.1.attn_q.weight"].data), own["layers.1.attention.wqkv.weight"][:16])
    assert ("output.weight" in tensors) != module.model.config.tie_embeddings
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    encoder = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    ids = module.tokenizer.encode("Once upon")
    assert encoder("Once upon").input_ids == ids
    greedy = continuation(module, ids)
    out = peer.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    assert out[: len(greedy)] == greedy


REFUSED = [
    ("gguf", "words", {}, "not the tokenizer .of the kind huggingface.: use --format hf"),
    ("gguf", "unigram", {}, "a GGUF file holds byte-level BPE"),
    ("gguf", "llama2c", {"rope_scaling": LLAMA3}, "rope_scaling. of a GGUF file: use --format hf"),
    ("llama2c", "bytes", {}, "not the tokenizer .of the kind bytes.: use --format hf, or --data.tokenizer none"),
    ("llama2c", "llama2c", {"norm_eps": 1e-6}, "expresses only rope_theta 10000, norm_eps 1e-5"),
]


@pytest.mark.parametrize(("format", "kind", "settings", "sentence"), REFUSED)
def test_what_a_format_cannot_express_is_refused(format, kind, settings, sentence, tmp_path):
    if format == "gguf":
        pytest.importorskip("gguf", reason="writing GGUF needs the extra export")
    with pytest.raises(UserError, match=sentence):
        export_module(new_module(KINDS[kind](), **settings), format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_user_defined_symbols_are_refused():
    with pytest.raises(UserError, match="the user-defined symbol '<sep>'"):
        tokenizer_files(sentence_piece(user_defined_symbols=["<sep>"]))


@pytest.mark.parametrize("kind", ["sentencepiece", "llama2c"])
def test_llama2c_files_are_read_again(kind, tmp_path):
    module = new_module(KINDS[kind](), padded_vocab_size=640, tie_embeddings=False)
    export_module(module, "llama2c", tmp_path / "model.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", "tokenizer.bin"}
    again, _ = load_module(str(tmp_path / "model.bin"))
    assert [again.tokenizer.encode(text) for text in (TEXT, " x")] == [
        module.tokenizer.encode(text) for text in (TEXT, " x")
    ]
    size = module.tokenizer.vocab_size
    tokens = torch.arange(20)[None]
    assert torch.equal(load_checkpoint(tmp_path / "model.bin")(tokens)[0], module.model(tokens)[0][..., :size])
    with pytest.raises(UserError, match=r"tokenizer\.bin exists already"):
        export_module(module, "llama2c", tmp_path / "other.bin")
    assert not (tmp_path / "other.bin").exists()
