"""Options of generation are checked before anything is printed or computed."""

import pytest
import torch

from zoo.__main__ import main
from zoo.errors import UserError
from zoo.generation.sampling import stream_tokens
from zoo.revdeq.model import RevDEQ, RevDEQConfig
from zoo.tokenizers import load_tokenizer

LLAMA = ["generate", "--ckpt_path=zoo:llama-wikitext2"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--prompt=a", '--prompts=["b"]'], "--prompt and --prompts are both given: drop one of them"),
        (["--max_length=5", "--max_new_tokens=200"], "--max_new_tokens and --max_length are both given"),
        (["--max_length=-1"], "--max_length must be at least 0, not -1"),
        (["--seed=-1"], "--seed must be at least 0, not -1"),
        (["--prompt=a", "--stop_tokens=[5, 2048]"], "each id in stop must be from 0 to 2047, not 2048"),
        (["--prompt=a", "--top_k=0"], "top_k must be at least 1"),
        (["--prompt=a", "--temperature=-1"], "temperature must be a finite number of at least 0"),
        (["--seed_everything=7"], "--seed_everything has no effect on generate: set --seed\n"),
        (["--model.compile", "true"], "--model.compile has no effect on generate: set --compile\n"),
        (["--model.init_args.compile=true"], "--model.init_args.compile has no effect on generate: set --compile\n"),
        (["--mixed_precision.dtype=bf16"], "--mixed_precision.dtype has no effect on generate: set --precision\n"),
        (
            ["--trainer.precision=bf16-mixed"],
            "--trainer.precision has no effect on generate: set --precision to fp32, bf16 or int8\n",
        ),
        (["--samples.temperature=0.5"], "--samples.temperature has no effect on generate: set --temperature\n"),
        (["--predictions.path=x.jsonl"], "--predictions.path has no effect on generate: drop it\n"),
        (["--trainer.max_steps=5"], "--trainer.max_steps has no effect on generate: drop it\n"),
        (["--automatic"], "--automatic has no effect on generate: drop it\n"),
    ],
)
def test_refused_options_print_no_prompt(capsys, options, sentence):
    assert main([*LLAMA, *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"zoo: {sentence}")


def test_a_config_may_hold_options_of_other_verbs(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("seed_everything: 7\nsamples:\n  temperature: 0.5\ntrainer:\n  max_steps: 5\n")
    assert main([*LLAMA, f"--config={config}", "--prompt=The", "--max_new_tokens=1", "--trainer.devices=1"]) == 0
    assert capsys.readouterr().out.startswith("The")


def test_max_length_counts_the_prompt_and_replaces_the_default_number_of_new_tokens(capsys):
    assert main([*LLAMA, '--prompts=["The film"]', "--max_length=7", "--temperature=0"]) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    assert len(load_tokenizer("zoo:llama-wikitext2").encode(text)) == 7


def test_stream_is_checked_by_the_call_itself():
    network = RevDEQ(RevDEQConfig(vocab_size=7, hidden_size=16, num_heads=2))
    for options in ({"precision": "int8"}, {"compile": True}, {"stop": [7]}, {"pad": 7}):
        with pytest.raises(UserError):
            stream_tokens(network, torch.tensor([[1]]), 3, **options)
    with pytest.raises(UserError, match="RevDEQ decodes in fp32 or bf16, not in int8"):
        stream_tokens(network, torch.tensor([[1]]), 3, precision="int8")
