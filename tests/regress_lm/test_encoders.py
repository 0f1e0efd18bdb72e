"""RegressLM with a pretrained encoder: equality with transformers, modes, stored states, checkpoints, wrong folders."""

import copy
import json
import re
import sys

import pytest
import torch

from tests.commands import complaint
from tests.regress_lm.test_defaults import TEXTS
from zoo.__main__ import main
from zoo.datamodules import TextRegression
from zoo.errors import UserError
from zoo.regress_lm import Example, RegressLM
from zoo.regress_lm.defaults import choose_settings
from zoo.regress_lm.encoders import count_weights, encoder_from_config, load_encoder, longest_input
from zoo.tokenizers import from_state, load_tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

KINDS = ("bert", "roberta", "modernbert", "t5", "t5gemma")
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghij0123456789", "x", "=", "very", "long", "[", "]", "SEP"]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"dim": 8, "n_heads": 2, "n_decoder_layers": 1, "number_digits": 2}
EXAMPLES = [Example(f"x = {i} {'very long ' * (i % 4)}", float(i)) for i in range(24)]


def network(kind: str):
    """A tiny model of transformers with random weights."""
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=32, pad_token_id=0)
    elif kind == "roberta":
        config = transformers.RobertaConfig(**SIZES, **IDS, num_hidden_layers=2, max_position_embeddings=32)
    elif kind == "modernbert":
        config = transformers.ModernBertConfig(
            **SIZES, **IDS, cls_token_id=1, sep_token_id=2, num_hidden_layers=2, max_position_embeddings=32
        )
    elif kind == "t5":
        config = transformers.T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    else:
        part = transformers.T5GemmaModuleConfig(
            **SIZES, **IDS, num_hidden_layers=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=32
        )
        config = transformers.T5GemmaConfig(encoder=part, decoder=part, **IDS, vocab_size=len(WORDS))
    return transformers.AutoModel.from_config(config)


def save(folder, kind: str = "bert"):
    """The folder of a tiny encoder with its tokenizer."""
    network(kind).save_pretrained(folder)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Whitespace(), tokenizers.pre_tokenizers.Digits(individual_digits=True)]
    )
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Folder of stored states."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoder_states"


def new(encoder: str, mode: str = "frozen", **settings) -> RegressLM:
    rank = {"lora_rank": 2} if mode == "lora" else {}
    return RegressLM.from_scratch(encoder=encoder, encoder_mode=mode, **SMALL | rank | settings)


def encoder_weights(model: RegressLM) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.model.encoder.pretrained.named_parameters()}


def calls(model: RegressLM) -> list:
    """A list that grows by one with every call of the pretrained encoder."""
    made: list = []
    model.model.encoder.pretrained.register_forward_hook(lambda *_: made.append(None))
    return made


# ---- the network


@pytest.mark.parametrize("kind", KINDS)
def test_states_equal_transformers_and_padding_has_no_influence(kind, tmp_path):
    folder = save(tmp_path / "encoder", kind)
    model = new(folder)
    [batch] = model.batches(EXAMPLES[:6], 6)
    peer = transformers.AutoModel.from_pretrained(folder).eval()
    peer = peer.get_encoder() if kind in ("t5", "t5gemma") else peer
    mask = batch.padding_mask
    with torch.no_grad():
        states = peer(input_ids=batch.tokens, attention_mask=mask.long()).last_hidden_state
    encoder = model.model.encoder
    expected = encoder.project(torch.nn.functional.layer_norm(states, (16,)))
    torch.testing.assert_close(model.model.encode(batch.tokens, mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)
    # One text alone and in a batch with longer texts.
    together = model.log_prob(EXAMPLES[:6])
    alone = torch.cat([model.log_prob([example]) for example in EXAMPLES[:6]])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    # Positions of RoBERTa start behind the id of its padding; those of T5 are relative and unlimited.
    assert encoder.longest_input == {"t5": None, "roberta": 31}.get(kind, 32)
    assert model.model.config.max_input_len == (encoder.longest_input or 2048)


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_modes_train_what_they_name(mode, bert):
    model = new(bert, mode, encoder_lr=1e-2)
    before = encoder_weights(model)
    rates = {id(p): g["lr"] for g in _optimizer(model).param_groups for p in g["params"]}
    trained = {name for name, p in model.model.encoder.pretrained.named_parameters() if p.requires_grad}
    model.fine_tune(EXAMPLES, EXAMPLES, max_epochs=2, batch_size=8, progress=False)
    after = encoder_weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= trained
    matrices = [name for name in before if "embeddings" not in name and before[name].ndim == 2]
    if mode == "frozen":
        assert not trained
    elif mode == "lora":
        assert {name.rpartition(".")[2] for name in changed} == {"a", "b"}
    else:
        assert set(matrices) <= changed
    # The learning rate of the encoder differs from that of new weights.
    assert {rates[id(p)] for p in model.model.encoder.pretrained.parameters() if id(p) in rates} <= {1e-2}
    assert {rates[id(p)] for p in model.model.decoder.parameters()} == {1e-3}


def _optimizer(model):
    return model.optimizer_config.build(model.named_parameters(), model.lr_scale)


def test_a_frozen_encoder_reads_each_text_once(bert, cache):
    first = new(bert)
    made = calls(first)
    losses = first.fine_tune(EXAMPLES[:16], EXAMPLES[16:], max_epochs=3, batch_size=8, progress=False, seed=1)
    assert len(made) == 3  # two batches of training, one of validation; calibration reads the latter's states
    [file] = cache.glob("*.sqlite")
    assert file.stem == first.model.encoder.digest
    # Another model with the same encoder reads all states from the file, and learns the same.
    second = new(bert)
    made = calls(second)
    again = second.fine_tune(EXAMPLES[:16], EXAMPLES[16:], max_epochs=3, batch_size=8, progress=False, seed=1)
    assert not made
    assert again == losses
    # Without the file, states differ by rounding at most.
    third = new(bert, encoder_cache=False)
    made = calls(third)
    plain = third.fine_tune(EXAMPLES[:16], EXAMPLES[16:], max_epochs=3, batch_size=8, progress=False, seed=1)
    assert len(made) == 9 + 2
    assert plain == pytest.approx(losses, abs=1e-4)
    # A damaged file is named.
    file.write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"sqlite.*encoder_cache false"):
        second.fine_tune(EXAMPLES[:16], EXAMPLES[16:], max_epochs=1, progress=False)


# ---- checkpoints


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_checkpoint_gives_the_same_probabilities(mode, tmp_path, monkeypatch):
    folder = save(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    model = new("encoder", mode)
    monkeypatch.chdir("/")  # a relative path is stored as an absolute one
    model.fine_tune(EXAMPLES, EXAMPLES, max_epochs=1, batch_size=8, progress=False)
    expected = model.log_prob(EXAMPLES)
    model.save(tmp_path / "model.ckpt")
    weights = [key for key in torch.load(tmp_path / "model.ckpt")["state_dict"] if "pretrained" in key]
    assert bool(weights) == (mode != "frozen")
    assert all(key.endswith((".a", ".b")) for key in weights) or mode == "full"
    loaded = RegressLM.load(tmp_path / "model.ckpt")
    assert torch.equal(loaded.log_prob(EXAMPLES), expected)
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    # Another encoder at the same place is refused, unless the checkpoint holds all weights.
    other = network("bert")
    torch.nn.init.normal_(other.embeddings.word_embeddings.weight)
    other.save_pretrained(folder)
    if mode == "full":
        assert torch.equal(RegressLM.load(tmp_path / "model.ckpt").log_prob(EXAMPLES), expected)
    else:
        with pytest.raises(UserError, match=f"encoder in {folder} has the digest"):
            RegressLM.load(tmp_path / "model.ckpt")


@pytest.mark.parametrize("mode", ["frozen", pytest.param("full", marks=pytest.mark.slow)])
def test_command_line(mode, bert, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("text,y\n" + "".join(f"{example.x},{example.y}\n" for example in EXAMPLES * 2))
    run = tmp_path / "run"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    options = ["--model=RegressLM", *(f"--model.{name}={value}" for name, value in SMALL.items()), *quiet]
    main(
        ["fit", *options, "--model.num_samples=4", f"--model.encoder={bert}", f"--model.encoder_mode={mode}",
         "--data=TextRegression", f"--data_dir={table}", "--data.target_columns=y", "--data.batch_size=8",
         "--trainer.max_steps=4", "--trainer.enable_model_summary=false", f"--output_dir={run}"]
    )  # fmt: skip
    config = (run / "config.yaml").read_text()
    assert f"tokenizer: transformers:{bert}" in config
    assert "max_input_len: 32" in config  # of the data: the encoder's longest input
    # All other verbs need the checkpoint only.
    for verb in ("validate", "test", "predict"):
        main([verb, f"--ckpt_path={run / 'best.ckpt'}", *quiet])
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(EXAMPLES)
    main(["fit", f"--ckpt_path={run / 'last.ckpt'}", "--trainer.max_steps=6", *quiet])
    capsys.readouterr()
    # Tokens of another tokenizer are refused.
    message = complaint(
        capsys, 1, "fit", *options, f"--model.encoder={bert}", "--data=TextRegression", f"--data_dir={table}",
        "--data.target_columns=y", "--data.tokenizer=bytes", f"--output_dir={tmp_path / 'other'}",
    )  # fmt: skip
    assert f"--data.tokenizer transformers:{bert}" in message


# ---- settings that the rules choose


@pytest.fixture
def table(tmp_path):
    rows = "".join(f"{i % 9},{'abc'[i % 3]},{100 * (i % 9) + i % 5}\n" for i in range(60))
    (tmp_path / "table.csv").write_text("a,b,y\n" + rows)
    return str(tmp_path / "table.csv")


def test_automatic_settings_train_in_every_mode(bert, table, tmp_path, capsys):
    main(
        ["fit", "--config=regress_lm", f"--data_dir={table}", "--data.target_columns=y", f"--model.encoder={bert}",
         "--model.encoder_mode=lora", "--model.dim=8", "--trainer.max_steps=1", "--model.num_samples=4",
         "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", f"--output_dir={tmp_path / 'run'}"]
    )  # fmt: skip
    printed = capsys.readouterr().err
    assert "--data.tokenizer" not in printed  # it follows from the encoder and is not chosen
    assert re.search(r"--data.synthetic_rows 0 +the encoder would read each of them", printed)
    config = (tmp_path / "run" / "config.yaml").read_text()
    for line in (f"tokenizer: transformers:{bert}", "max_input_len: 32", "optimizer: adamw", "lora_rank: 8"):
        assert line in config


@pytest.mark.parametrize(("mode", "optimizer"), [("frozen", "adamw"), ("full", "adamw")])
def test_from_data_reads_the_tokens_of_the_encoder(bert, table, mode, optimizer):
    data = TextRegression(table, target_columns="y")
    model = RegressLM.from_data(
        data, encoder=bert, encoder_mode=mode, dim=8, num_samples=4, val_samples=2, max_steps=2, progress=False
    )
    assert model.tokenizer.fingerprint == load_tokenizer(f"transformers:{bert}").fingerprint
    assert model.model.config.max_input_len == model.stored_data_settings["max_input_len"] == 32
    assert model.hparams["optimizer"] == optimizer
    assert model.stored_data_settings["synthetic_rows"] == 0
    # What is given to the data is kept.
    with pytest.raises(UserError, match="its own tokenizer: set tokenizer transformers:"):
        RegressLM.from_data(TextRegression(table, target_columns="y", tokenizer="bytes"), encoder=bert, max_steps=1)


def test_chosen_steps_follow_the_cost_of_the_encoder(bert, monkeypatch):
    def steps(rows, mode, weights):
        monkeypatch.setattr("zoo.regress_lm.encoder_defaults.count_weights", lambda _: weights)
        given = {"model.encoder": bert, "model.encoder_mode": mode}
        choices = choose_settings(TEXTS._replace(n_rows=rows), given)
        settings = {choice.option: choice.value for choice in choices}
        assert settings["model.optimizer"] == "adamw"
        assert not settings.keys() & {"data.tokenizer", "data.power_tokens", "model.muon_lr"}
        assert settings["data.synthetic_rows"] == settings["data.augment_copies"] == 0
        return settings["trainer.max_steps"]

    assert [steps(6400, mode, 10**5) for mode in ("frozen", "lora", "full")] == [800, 400, 300]  # 8, 4 and 3 epochs
    assert [steps(64, mode, 10**5) for mode in ("frozen", "lora", "full")] == [400, 100, 100]
    assert [steps(10**6, mode, 10**5) for mode in ("frozen", "full")] == [4000, 4000]
    # 300 s of 5e10 operations; a step reads 64 texts of 20 tokens: 2.56e9 weights x passes.
    assert [steps(10**6, mode, 10**8) for mode in ("frozen", "lora", "full")] == [58, 29, 19]
    assert count_weights(bert) == 2 * (4 * 16 * 16 + 2 * 16 * 24)


def test_interrupted_fine_tuning_ends_the_storing_of_states(bert, monkeypatch):
    model = new(bert)
    monkeypatch.setattr(model, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.fine_tune(EXAMPLES, max_epochs=1, progress=False)
    assert model.pretrained_encoder.cache is None
    with model.stored_states():
        expected = model.log_prob(EXAMPLES[:2])
        assert torch.equal(copy.deepcopy(model).log_prob(EXAMPLES[:2]), expected)


# ---- the tokenizer


def test_tokenizer_adds_special_tokens_and_reads_their_names_as_text(bert):
    tokenizer = load_tokenizer(f"transformers:{bert}")
    peer = transformers.AutoTokenizer.from_pretrained(bert)
    texts = ["x = 12", "very unknown"]
    assert tokenizer.encode_batch(texts) == [peer(text)["input_ids"] for text in texts]
    assert tokenizer.encode_batch(["x [SEP]"])[0].count(2) == 1  # transformers would end the text twice
    assert tokenizer.encode_batch([""]) == [[]]
    ids = tokenizer.encode("a b c d")
    assert tokenizer.truncated(ids, 4) == [*ids[:3], 2]
    assert tokenizer.truncated(ids, 6) == ids
    assert tokenizer.decode(ids) == "a b c d"
    assert from_state(tokenizer.state()).fingerprint == tokenizer.fingerprint


# ---- wrong folders and settings


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("{", "is damaged: Expecting property name"),
        ("[1]", "is damaged: it is of type list"),
        ('{"model_type": "bert", "model_type": "bert"}', "its key 'model_type' occurs twice"),
        ('{"model_type": "no model"}', "the checkpoint's encoder cannot be built"),
    ],
)
def test_a_damaged_configuration_in_a_checkpoint_is_named(description, reason):
    with pytest.raises(UserError, match=reason):
        encoder_from_config(description)


def test_unsafe_and_incomplete_folders_are_refused(bert, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is a file"):
        load_encoder(f"{bert}/config.json")
    with pytest.raises(FileNotFoundError, match=r"no folder \./missing"):
        load_encoder("./missing")
    # Weights as pickle only.
    folder = tmp_path / "pickle"
    save(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        load_encoder(str(folder))
    # Code in the folder is not executed.
    folder = tmp_path / "code"
    save(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded by transformers' AutoModel"):
        load_encoder(str(folder))
    assert not (tmp_path / "executed").exists()
    # Weights of fewer layers than the configuration has.
    folder = tmp_path / "incomplete"
    save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks weights of its encoder, encoder\.layer\.2"):
        load_encoder(str(folder))
    # Without transformers.
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install '\.\[encoders\]'"):
        new(bert)


def test_contradictory_settings_are_refused(bert):
    with pytest.raises(UserError, match="needs the rank of the updates"):
        new(bert, "lora", lora_rank=0)
    with pytest.raises(UserError, match="lora_rank 2 has no effect with encoder_mode full"):
        new(bert, "full", lora_rank=2)
    with pytest.raises(UserError, match="muon"):
        new(bert, "full", optimizer="muon")
    with pytest.raises(UserError, match=r"encoder_mode lora needs a pretrained encoder: add --model.encoder, or drop"):
        RegressLM(vocab_size=257, encoder_mode="lora", lora_rank=2)
    with pytest.raises(UserError, match="encoder_mode must be one of"):
        new(bert, "half")
    with pytest.raises(UserError, match="lora_rank would adapt the pretrained encoder"):
        new(bert).fine_tune(EXAMPLES, max_epochs=1, lora_rank=2)
    with pytest.raises(UserError, match="40 tokens, beyond max_input_len 32"):
        new(bert).log_prob([Example("very long " * 19, 1.0)])


def test_an_encoder_with_unlimited_positions_keeps_the_given_length(tmp_path):
    folder = save(tmp_path / "t5", "t5")
    assert longest_input(load_encoder(folder)) is None
    assert new(folder, max_input_len=64).model.config.max_input_len == 64
