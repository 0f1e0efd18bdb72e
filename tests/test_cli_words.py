"""Words of a command that are nearly right: one dash, a value of two words, a mistyped class of the Trainer."""

import pytest

from tests.commands import TINY, complaint
from zoo.cli.arguments import read_arguments

FIT = ["fit", "--config", TINY]


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["generate", "-ckpt_path", "x.ckpt"], 2, "there is no option -ckpt_path; did you mean --ckpt_path?"),
        (["fit", "-config=tiny/llama"], 2, "there is no option -config; did you mean --config?"),
        (["fit", "-checkpoint.dirpath=x"], 2, "there is no option -checkpoint.dirpath; did you mean --checkpoint"),
        ([*FIT, "-p", "3"], 2, "there is no option -p: all options but -c and -h begin with two dashes"),
        ([*FIT, "--lr", "1e-3"], 2, "there is no option --lr; did you mean --model.lr?"),
        ([*FIT, "--trainer.gpus", "1"], 2, "there is no option --trainer.gpus"),
        ([*FIT, "--budget", "5", "min"], 2, "'min' belongs to no option: did you mean --budget '5 min'?"),
        ([*FIT, "--budget", "-5s"], 1, "--budget must be a time such as 90s, 5min or 1.5h, not '-5s'"),
        ([*FIT, "--data_dir", "my", "file.txt"], 2, "did you mean --data_dir 'my file.txt'?"),
        ([*FIT, "--data_dir", "my.txt", "tiny/lama"], 2, "did you mean --config tiny/llama?"),
        ([*FIT, "--data_dir", "--automatic"], 2, "--data_dir needs a value: write --data_dir VALUE"),
        ([*FIT, "--trainer.logger=CSVLoger"], 2, "--trainer.logger: there is no logger 'CSVLoger'; did you mean CSVL"),
        ([*FIT, "--trainer.logger=lightning.pytorch.CSVLoger"], 2, "there is no logger 'lightning.pytorch.CSVLoger'; "),
        ([*FIT, "--trainer.logger=none"], 2, "there is no logger 'none': set it to false for none"),
        ([*FIT, "--trainer.logger=torch.nn.Linear"], 2, "torch.nn.Linear is no logger: it is one of CometLogger, CSV"),
        ([*FIT, "--trainer.logger=CSVLogger", "--trainer.logger.nam=x"], 2, "did you mean trainer.logger.name?"),
        ([*FIT, "--trainer.callbacks+=Timr"], 2, "--trainer.callbacks: there is no callback 'Timr'; did you mean Time"),
        ([*FIT, '--trainer.callbacks=[{"class_path": "torch.nn.GELU"}]'], 2, "torch.nn.GELU is no callback"),
        ([*FIT, "--trainer.plugins=TorchCheckpointI0"], 2, "no plugin 'TorchCheckpointI0'; did you mean TorchCheckpo"),
        ([*FIT, "--trainer.strategy=DDPStrateg"], 1, "there is no strategy 'DDPStrateg'; did you mean DDPStrategy?"),
        ([*FIT, "--trainer.strategy=xyz"], 1, "no strategy 'xyz': it is one of auto, ddp, ddp_spawn, ddp_fork, fsdp2"),
        ([*FIT, '--trainer.strategy={"class_path": "DDPStrategy", "init_args": {"x": 1}}'], 1, "the settings of DDPSt"),
        ([*FIT, '--trainer.profiler={"class_path": "SimpleProfilr"}'], 1, "no profiler 'SimpleProfilr'; did you mean"),
        ([*FIT, "--trainer.accelerator=gpuu"], 1, "there is no accelerator 'gpuu'; did you mean gpu?"),
        ([*FIT, "--model=torch.nn.Linear"], 2, "--model: torch.nn.Linear is no model or data class"),
    ],
    ids=lambda value: " ".join(map(str, value))[-40:] if isinstance(value, list) else None,
)  # fmt: skip
def test_nearly_right_words_get_a_suggestion(argv, code, sentence, capsys):
    said = complaint(capsys, code, *argv)
    assert sentence in said
    assert ".help" not in said  # jsonargparse's options that show a class


def test_a_value_may_begin_with_a_dash_and_a_flag_may_precede_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("seed_everything: 1")
    read = read_arguments(["--output_dir", "-runs", "--compile", "-c", "one.yaml", "--model.lr", "-1"])
    assert read.words == ["--output_dir=-runs", "--compile=true", "--config=one.yaml", "--model.lr=-1"]
    assert read.values == {"output_dir": "-runs"}
