"""Bad input on the command line: one sentence that names it and the remedy, and a non-zero exit code."""

import pytest

from tests.commands import ROOT, TEXT, TINY, complaint
from zoo.llama import load_checkpoint, save_checkpoint
from zoo.tokenizers import train_bpe


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["fti"], 2, "no verb 'fti'; did you mean 'fit'?"),
        (["trian"], 2, "no verb 'trian'; did you mean 'fit'?"),
        (["fit", "tiny/llama"], 2, "'tiny/llama' belongs to no option: did you mean --config tiny/llama?"),
        (["fit", "--config", TINY, "model.lr=1"], 2, "did you mean --model.lr=1?"),
        (["fit", "--config", TINY, "-trainer.max_steps", "3"], 2, "did you mean --trainer.max_steps?"),
        (["fit", "--config", TINY, "--model.readout_dim=3"], 2, "no setting 'model.readout_dim' here: it is one of"),
        (["fit", "--config", TINY, "--model.optimizer=sgd"], 2, "must be 'adamw', 'adafactor' or 'muon', not 'sgd'"),
        (["fit", "--config", TINY, "--trainer.default_root_dir=x"], 1, "set the run's folder with --output_dir x"),
        (["fit", "--config", TINY, "--overwrite"], 1, "--overwrite is for the files of predict: drop it for fit"),
        (["fit", "--config", TINY, "--trainer.callbacks+=EarlyStoping"], 2, "mean zoo.callbacks.EarlyStopping?"),
        (["fit", "--config", TINY, "--trainer.callbacks=EarlyStopping"], 2, "write zoo.callbacks.EarlyStopping or"),
        (["fit", "--config", TINY, "--budget=0.000001s"], 1, "--budget 0.000001s is too short: the start"),
        (["fit"], 2, "a model and its data must be named: add --config NAME"),
        (["test"], 2, "zoo test needs a trained model: add --ckpt_path FILE"),
        (["predict", "--data_dir", "x.csv"], 2, "zoo predict needs a trained model: add --ckpt_path FILE"),
        (["export", "--format=hf"], 2, "zoo export needs --ckpt_path, DEST: `zoo export --help` describes them"),
        (["pull"], 2, "zoo pull needs name: `zoo pull --help` describes them"),
        (["fit", "--config=configs/tiny/lama.yaml"], 2, "did you mean configs/tiny/llama.yaml?"),
        (["fit", "--config=tiny/lama"], 2, "there is no config tiny/lama; did you mean tiny/llama?"),
        (["fit", "-c", "tiny/lama.yaml"], 2, "there is no config tiny/lama.yaml; did you mean tiny/llama?"),
        (["fit", "--config=xyz"], 2, "there is no config xyz; `zoo list` shows the names"),
        (["fit", "--model=", "--data=TextLM"], 1, "--model is empty: give the name of a class"),
        (["fit", "--config={itself}"], 1, "itself.yaml, a config with settings of all groups: give it as --config"),
        (["fit", "--config", TINY, "--seed_everything=-5"], 1, "seed_everything must be from 0 to 4294967295, not -5"),
        (["fit", "--config={seed}"], 1, "--seed_everything must be from 0 to 4294967295, not 4294967296"),
        (["validate", "--ckpt_path={loop}"], 1, "loop.ckpt is a symbolic link to nothing"),
        (["validate", "--ckpt_path={folder}"], 1, "is the folder of a run: give --ckpt_path {folder}/best.ckpt"),
        (["fit", "--ckpt_path={folder}"], 1, "is the folder of a run: give --ckpt_path {folder}/last.ckpt"),
        (["fit", "--model=LlamaLM"], 2, "no data is named: add --data CLASS, or --config NAME"),
        (["fit", "--data=TextLM"], 2, "no model is named: add --model CLASS, or --config NAME"),
        (["fit", "--config", TINY, "--trainer.max_step=3"], 2, "did you mean --trainer.max_steps?"),
        (["fit", "--config", TINY, "--ckpt_pat=last"], 2, "no option --ckpt_pat; did you mean --ckpt_path?"),
        (["fit", "--config", TINY, "--output_di={tmp}"], 2, "no option --output_di; did you mean --output_dir?"),
        (["fit", "--config", TINY, "--early.patience=1"], 2, "did you mean --early_stopping.patience?"),
        (["fit", "--config", TINY, "--model.drop=1"], 2, "did you mean model.dropout?"),
        (["fit", "--config", TINY, "--trainer.max_stepz=3"], 2, "did you mean --trainer.max_steps?"),
        (["fit", "--config", TINY, "--model.dimm=3"], 2, "no setting 'model.dimm'; did you mean model.dim?"),
        (["fit", "--config", TINY, "--data.seqlen=3"], 2, "did you mean data.seq_len?"),
        (["fit", "--config", TINY, "--trainer.max_steps=many"], 2, "trainer.max_steps must be int, not 'many'"),
        (["fit", "--config", TINY, "--early_stopping.patience=x"], 2, "patience must be int or null, not 'x'"),
        (["fit", "--config", TINY, "--model=LlamaLN"], 2, "did you mean LlamaLM?"),
        (["fit", "--config", TINY, "--model.n_heads=3"], 1, "dim 128 is not a multiple of n_heads 3"),
        (["fit", "--config", TINY, "--trainer.accelerator=gpu"], 1, "no CUDA GPU here"),
        (["fit", "--config", TINY, "--data_dir=no/such.txt", "--output_dir={tmp}"], 1, "no text is at no/such.txt"),
        (["fit", "--config={notes}"], 1, "notes.yaml holds no settings"),
        (["fit", "--config", TINY, "--trainer.accelerator=tpu"], 1, "torch_xla"),
        (["fit", "--config", TINY, "--trainer.accumulate_grad_batches=0"], 1, "must be at least 1"),
        (["fit", "--config", TINY, "--early_stopping.mode=mni"], 1, "mode must be one of min, max, not 'mni'"),
        (["fit", "--config", TINY, "--data_dir={empty}", "--output_dir={tmp}"], 1, "no text"),
        (["fit", "--config", TINY, "--data_dir={short}", "--output_dir={tmp}"], 1, "one window needs"),
        (["fit", "--config", TINY, "--data.seq_len=512", "--output_dir={tmp}"], 1, "set --data.seq_len to at most 256"),
        (["fit", "--config", TINY, "--output_dir=/proc/zoo"], 1, "cannot write to /proc/zoo"),
        (["fit", "--config", TINY, "--ckpt_path={foreign}"], 1, "To start from its weights, use --model.weights"),
        (["validate", "--config", TINY], 1, "add --ckpt_path FILE"),
        (["validate", "--ckpt_path=no.ckpt"], 1, "no checkpoint no.ckpt"),
        (["validate", "--ckpt_path={broken}"], 1, "broken.ckpt is truncated or damaged"),
        (["validate", "--ckpt_path={run}", "--data.tokenizer={tokenizer}"], 1, "the tokenizer has 280 tokens"),
        (["validate", "--ckpt_path={run}", "--model.dim=32"], 1, "(257, 16) in the file and (257, 32) in the model"),
        (["validate", "--ckpt_path={run}", "--config=tiny/icr"], 1, "written by LlamaLM, but the config or command"),
        (["fit", "--ckpt_path={run}", "--config=tiny/mini_rlm"], 1, "or give a checkpoint of MiniRLM"),
        (["fit", "--ckpt_path={broken}"], 1, "it was not written by `zoo fit`, or is damaged"),
        (["fit", "--ckpt_path={alone}"], 2, "there is no config.yaml next to"),
        (["fit", "--model=LlamaLM", "--data=LinearRegressionTasks"], 1, "LinearRegressionTasks has no vocab_size"),
        (["fit", "--model=LlamaZeroShot", "--data=TextLM"], 1, "which LlamaZeroShot needs: give --data Reviews"),
        (["fit", "--config", TINY, "--output_dir="], 1, "--output_dir is empty"),
        (["fit", "--config", TINY, "--ckpt_path="], 1, "--ckpt_path is empty"),
        (["fit", "--config", TINY, "--data_dir= "], 1, "--data_dir is empty"),
        (["fit", "--config="], 2, "--config is empty"),
        (["fit", "--config", TINY, "--output_dir=runs/na\udcffme"], 1, r"na\xffme contains bytes that are not UTF"),
        (["predict", "--ckpt_path={run}", "--predictions.path="], 1, "--predictions.path '' is not a name of a file"),
        (["predict", "--ckpt_path={run}", "--predictions.path=/"], 1, "is a folder: give the path of a file"),
        (["predict", "--ckpt_path={run}", "--predictions.path={notes}/x"], 1, "notes.yaml/x (Not a directory): give"),
        (["fit", "--config", TINY, "--output_dir=runs/{{x}}"], 1, "the unknown placeholder {x}"),
        (["predict", "--ckpt_path={run}", "--output_dir={notes}"], 1, "notes.yaml is a file: give a folder"),
        (["fit", "--config", TINY, "--data.num_workers=-1", "--output_dir={tmp}"], 1, "num_workers must be at least 0"),
        (["fit", "--config", TINY, "--model.warmup_steps=null"], 2, "model.warmup_steps must be int, not 'null'"),
        (["fit", "--config", TINY, "--model.lr=null"], 2, "model.lr must be float, not 'null'"),
        (["fit", "--config", TINY, "--config={nulls}"], 2, "early_stopping.mode must be str, not 'null'"),
        (["fit", "--config", TINY, "--model.dim=1000000000000"], 1, "the model does not fit into memory"),
        (["fit", "--config", TINY, "--config={callback}"], 1, "with the top-level key early_stopping"),
        (["fit", "--config", TINY, "--model.vocab_size=100"], 2, "--model.vocab_size is taken from the data: drop it"),
        (["fit", "--config=tiny/icr", "--model.D=3"], 2, "is taken from the data: drop it, and set --data.D instead"),
        (["validate", "--ckpt_path={run}", "--config={sizes}"], 2, "model.vocab_size is taken from the data: drop it"),
    ],
    ids=lambda value: " ".join(map(str, value))[-60:] if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input_gets_one_sentence(argv, code, sentence, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "notes.yaml").write_text("just words")
    (tmp_path / "nulls.yaml").write_text("early_stopping: {mode: null}")
    (tmp_path / "sizes.yaml").write_text("model: {init_args: {vocab_size: 100}}")
    (tmp_path / "callback.yaml").write_text("trainer: {callbacks: [{class_path: zoo.callbacks.EarlyStopping}]}")
    (tmp_path / "itself.yaml").write_text(f"model: {tmp_path / 'itself.yaml'}")
    (tmp_path / "seed.yaml").write_text(TINY.read_text().replace("seed_everything: 0", "seed_everything: 4294967296"))
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    (tmp_path / "alone.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    (tmp_path / "short.txt").write_text("a line\n" * 12)
    (tmp_path / "broken.ckpt").write_bytes((run / "best.ckpt").read_bytes()[:5000])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(str(train_bpe(iter([TEXT]), 280).state()["model"]))
    save_checkpoint(load_checkpoint(run / "best.ckpt"), tmp_path / "llama2c.bin", format="llama2c")
    places = {
        "tmp": tmp_path / "out", "empty": tmp_path / "empty.txt", "short": tmp_path / "short.txt",
        "broken": tmp_path / "broken.ckpt", "run": run / "best.ckpt", "tokenizer": folder,
        "foreign": tmp_path / "llama2c.bin", "notes": tmp_path / "notes.yaml", "nulls": tmp_path / "nulls.yaml",
        "itself": tmp_path / "itself.yaml", "seed": tmp_path / "seed.yaml", "loop": tmp_path / "loop.ckpt",
        "folder": run, "sizes": tmp_path / "sizes.yaml", "callback": tmp_path / "callback.yaml",
        "alone": tmp_path / "alone.ckpt",
    }  # fmt: skip
    said = complaint(capsys, code, *(str(a).format(**places) for a in argv))
    assert sentence.replace("{folder}", str(run)) in said
    assert not list((tmp_path / "out").glob("*.ckpt"))
