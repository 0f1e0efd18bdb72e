"""TensorBoard in headless Chromium shows the charts, figures, samples and hyperparameters of a run of each model."""

import re
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.browser import chromium, missing_browser
from zoo.__main__ import main
from zoo.callbacks.charts import CHARTS
from zoo.registry import load_class

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_browser() is not None, reason=str(missing_browser())),
]
# Config -> class, lines that a chart must have, metrics in the table of hyperparameters, figures.
MODELS = {
    "llama": ("LlamaLM", ["train/loss", "val/loss", "baseline/loss_trigram"], ["val/ppl"], []),
    "llama_classifier": (
        "LlamaClassifier", ["val/accuracy", "baseline/accuracy_most_frequent"], ["val/accuracy"], ["confusion"],
    ),
    "mini_rlm": ("MiniRLM", ["val/mae", "baseline/mae_median"], ["val/mae"], ["scatter"]),
    "regress_lm": ("RegressLM", ["val/mae", "baseline/mae_median"], ["val/mae"], ["scatter", "calibration"]),
    "icr_pool": (
        "ICRTransformer", ["val/pretrain_mse", "baseline/pretrain_mse_ridge", "baseline/pretrain_mse_dmmse"],
        ["val/true_to_ridge"], ["errors"],
    ),
    "revdeq": ("RevDEQLM", ["train/loss", "val/loss", "baseline/loss_unigram"], ["val/ppl"], []),
}  # fmt: skip
SHORT = [
    "--trainer.max_steps=20", "--trainer.val_check_interval=10", "--trainer.check_val_every_n_epoch=null",
    "--trainer.log_every_n_steps=5", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--model.warmup_steps=5",
    "--throughput.every_n_steps=5", "--samples.max_new_tokens=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module", params=MODELS)
def board(request, tmp_path_factory):
    """The name of a config, the folder of its run, and the address of a TensorBoard that shows it."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert main(["fit", f"--config=tiny/{request.param}", f"--output_dir={folder}", *SHORT]) == 0
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--port=0", "--host=127.0.0.1"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield request.param, folder, next(m[0] for line in server.stderr if (m := re.search(r"http://[\d.:]+/", line)))
    finally:
        server.terminate()
        server.communicate()


def test_charts_have_a_line_and_a_legend_entry_for_each_metric(board, browser):
    config, folder, url = board
    name, together, _, _ = MODELS[config]
    tags = EventAccumulator(str(folder)).Reload().Tags()["scalars"]
    charts = {**load_class(name).charts, **CHARTS}
    browser.open(f"{url}#custom_scalars")
    lines = {title: [t for t in tags if any(re.fullmatch(p, t) for p in charts[title])] for title in charts}
    assert any(set(together) <= set(names) for names in lines.values())
    for title, names in lines.items():
        for tag in names:
            browser.wait(f"text().split('\\n').includes({title!r})")
            browser.wait(f"text().split('\\n').includes('{tag} (.)')")
    # A line and a smoothed line for each.
    drawn = "select('path.line').filter(path => (path.getAttribute('d') || '').length > 0).length"
    browser.wait(f"{drawn} >= {sum(map(len, lines.values()))}")
    shown = browser.run("return text()").split("\n")
    assert not [title for title, names in lines.items() if not names and title in shown]  # charts without lines


def test_table_of_hyperparameters_has_the_metrics(board, browser):
    config, folder, url = board
    metrics = ["val/loss", *MODELS[config][2]]
    events = EventAccumulator(str(folder)).Reload()
    browser.open(f"{url}#hparams")
    for metric in metrics:
        browser.wait(f"text().includes({metric!r})")
        value = f"{events.Scalars(metric)[-1].value:.5g}"[:5]  # TensorBoard rounds the last digits
        browser.wait(f"text().includes({value!r})")
    assert {"lr", "warmup_steps"} <= set(browser.run("return text()").split("\n"))


def test_figures_and_samples_are_shown(board, browser):
    config, _, url = board
    figures = MODELS[config][3]
    browser.open(f"{url}#{'images' if figures else 'text'}")
    for name in figures:
        browser.wait(f"text().includes('figures/{name}') || text().split('\\n').includes({name!r})")
    if figures:
        shown = f"select('img').filter(image => image.naturalWidth > 100).length >= {len(figures)}"
        browser.wait(shown)
    else:
        browser.wait("text().includes('sample')")
