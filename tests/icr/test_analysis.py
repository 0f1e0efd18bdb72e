"""Analyses of a sweep: scores compared with a plain loop, gradients of its models, PCA and regression on them."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV

from tests.icr.score_function import score_function
from tests.resume import BATCH_END, train
from zoo.console.exit_codes import run_command
from zoo.datamodules.linear_regression_tasks import LinearRegressionTasks
from zoo.icr import ICRTransformer, load_model, ridge
from zoo.icr.analysis import __main__ as analysis
from zoo.icr.analysis import explain, scores
from zoo.icr.analysis.gradients import PARTS, normals
from zoo.icr.task import Task

TASK = {"D": 2, "K": 3, "sigma2": 0.25}
SIZES = {"d_model": 16, "d_mlp": 16, "n_heads": 2, "n_layers": 1}


def save_member(folder, M, steps=4, **task):
    """Train one model and store its checkpoints after every second step in the layout of a sweep."""
    task = {**TASK, "M": M, **task}
    member = folder / f"checkpoints_M{M}"
    train(
        ICRTransformer(**task, **SIZES, lr=3e-2), LinearRegressionTasks(**task, batch_size=32),
        member, hooks=(BATCH_END,), every=2, max_steps=steps, limit_val_batches=0,
    )  # fmt: skip
    for file in member.glob("*.ckpt"):
        file.rename(file.with_name(f"checkpoint_step_{int(file.stem[-3:])}.ckpt"))
    (member / "weights.pt").rename(member / "best.ckpt")  # not a checkpoint: the analyses must not read it


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    for M in ("inf", 2, 16):
        save_member(folder, M)
    return folder


ORDER = [(M, step) for M in (2, 16, "inf") for step in (2, 4)]


def run(*argv):
    """The command's exit code."""
    return run_command(lambda: analysis.main([str(a) for a in argv]))


def read(file):
    return json.loads(file.read_text())


# ---- scores


@pytest.fixture(scope="module")
def scored(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    assert run("scores", sweep, "--n_prompts", 40, "--output", out) == 0
    assert (out / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in out.iterdir()) == ["scores.json", "scores.png"]
    return read(out / "scores.json")


def test_scores_equal_a_plain_loop(sweep, scored):
    assert [(row["M"], row["step"]) for row in scored["checkpoints"]] == ORDER
    for row in scored["checkpoints"]:
        model = load_model(sweep / f"checkpoints_M{row['M']}" / f"checkpoint_step_{row['step']}.ckpt")
        for kind, M in (("true", "inf"), ("pretrain", row["M"])):
            x, y, w = Task(**TASK, M=M).draw(40, 0, "analysis", kind, device=model.device)
            best = ridge(x, y, 0.25)
            with torch.no_grad():
                answer = torch.stack([model(x[i : i + 1], y[i : i + 1])[0] for i in range(40)])
            clean = (w[:, None] * x).sum(-1)
            for measure, target in (("mse", y), ("noise_free", clean), ("to_ridge", best)):
                expected = (answer - target).square().mean(0).tolist()
                assert row[kind][measure]["by_place"] == pytest.approx(expected, rel=1e-4)
                assert row[kind][measure]["mean"] == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_reference_scores_and_no_dmmse_for_infinite_pools(scored):
    by_M = {row["M"]: row for row in scored["references"]}
    assert list(by_M) == [2, 16, "inf"]
    x, y, _ = Task(**TASK, M="inf").draw(40, 0, "analysis", "true")
    expected = (ridge(x, y, 0.25) - y).square().mean().item()
    for M, row in by_M.items():
        assert row["ridge"]["true"]["mse"]["mean"] == pytest.approx(expected, rel=1e-5)  # the same new tasks for all M
        assert row["ridge"]["true"]["to_ridge"]["mean"] == 0
        assert (row["dmmse"]["true"]["mse"] is None) == (M == "inf")
    assert by_M[2]["dmmse"]["pretrain"]["mse"]["mean"] < by_M[2]["ridge"]["pretrain"]["mse"]["mean"]
    assert by_M[2]["dmmse"]["true"]["mse"]["mean"] > by_M[2]["ridge"]["true"]["mse"]["mean"]
    assert by_M[2]["ridge"]["true"]["to_dmmse"] == by_M[2]["dmmse"]["true"]["to_ridge"]
    assert all((row["true"]["to_dmmse"] is None) == (row["M"] == "inf") for row in scored["checkpoints"])


def test_scores_of_a_single_checkpoint_with_infinite_pool(sweep, tmp_path):
    shutil.copytree(sweep / "checkpoints_Minf", tmp_path / "checkpoints_Minf")
    (tmp_path / "checkpoints_Minf" / "checkpoint_step_2.ckpt").unlink()
    assert run("scores", tmp_path, "--n_prompts", 10) == run("gradients", tmp_path, "--n_prompts", 10) == 0
    assert (tmp_path / "scores.png").exists()


def test_dmmse_is_computed_once_for_each_pool(sweep, monkeypatch):
    calls = []
    evaluation = scores.evaluation
    monkeypatch.setattr(
        scores, "evaluation", lambda kind, task, *rest: calls.append((kind, task.M)) or evaluation(kind, task, *rest)
    )
    scores.scores(analysis.find_models(sweep), 4)
    assert calls == [(kind, M) for M in (2, 16, "inf") for kind in ("pretrain", "true")]


# ---- gradients


@pytest.fixture(scope="module")
def measured(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("gradients")
    assert run("gradients", sweep, "--n_prompts", 300, "--n_ood_samples", 300, "--output", out) == 0
    assert (out / "gradients.png").read_bytes().startswith(b"\x89PNG")
    return out / "gradients.json"


def test_gradients_of_every_checkpoint(sweep, measured):
    content = read(measured)
    assert [(row["M"], row["step"]) for row in content["checkpoints"]] == ORDER
    for row in content["checkpoints"]:
        model = load_model(sweep / f"checkpoints_M{row['M']}" / f"checkpoint_step_{row['step']}.ckpt")
        assert row["ood_score"] == pytest.approx(scores.summary({"": _ood_errors(model)})[""]["mean"], rel=1e-5)
        assert row["expected_loss"] == pytest.approx(row["ood_score"], rel=0.4)  # from other draws
        at = [0, 0, 1, 1, 0, 0, 1, 1, 0, 0.5]
        assert [number for part in PARTS for number in row["parameters"][part]] == at
        draws = normals(model.config, 20000, 5, model.device)
        value, error = (part.cpu().numpy() for part in score_function(model, torch.tensor(at), draws)[1])
        ours = [np.concatenate([row[name][part] for part in PARTS]) for name in ("gradients", "standard_errors")]
        assert (abs(ours[0] - value) < 4.5 * np.hypot(ours[1], error)).all()
    assert content["ridge"]["expected_loss"] < min(row["expected_loss"] for row in content["checkpoints"])


def _ood_errors(model):
    x, y, _ = Task(**TASK, M="inf").draw(300, 0, "ood", device=model.device)
    with torch.no_grad():
        return (model(x, y) - y).square()


# ---- PCA and regression of gradients


def write_gradients(tmp_path, gradient, score, Ms=None):
    """Write a gradients.json with rows of 10 numbers."""
    table = [dict(zip(PARTS, np.split(row, [2, 4, 6, 8, 9]), strict=True)) for row in gradient]
    rows = [
        {"M": M, "step": i, "ood_score": float(s), "gradients": {part: values.tolist() for part, values in row.items()}}
        for i, (row, s, M) in enumerate(zip(table, score, Ms or [4] * len(table), strict=True))
    ]
    (tmp_path / "gradients.json").write_text(json.dumps({"checkpoints": rows}))
    return tmp_path / "gradients.json"


def test_pca_finds_the_only_direction_that_varies(tmp_path):
    line = np.linspace(-1, 1, 9)[:, None] * np.logspace(-4, 4, 10) + 3.0  # the units of the columns do not matter
    result = explain.pca(explain.read(write_gradients(tmp_path, line, range(9))))
    assert result["explained"][0] == pytest.approx(1)
    assert result["explained_if_even"] == 1 / 8
    assert [abs(weight) for weight in result["components"][0].values()] == pytest.approx([10**-0.5] * 10)
    first = np.array([row["place"][0] for row in result["checkpoints"]])
    assert abs(np.diff(first)) == pytest.approx(np.full(8, abs(first[0]) / 4))
    assert list(result["components"][0])[:3] == ["x_mean[0]", "x_mean[1]", "x_sd[0]"]


def test_pca_shares_equal_the_eigenvalues_of_the_correlations(tmp_path):
    gradient = np.random.default_rng(0).normal(size=(30, 10)) @ np.diag(np.arange(1, 11))
    result = explain.pca(explain.read(write_gradients(tmp_path, gradient, range(30))))
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(gradient.T))[::-1]
    assert result["explained"] == pytest.approx(eigenvalues / eigenvalues.sum())


def test_regression_recovers_a_linear_relation(tmp_path):
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(24, 10))
    file = write_gradients(tmp_path, gradient, gradient @ np.arange(10.0) + 5, [1, 2, 4] * 8)
    result = explain.regression(explain.read(file))
    assert min(result[f"r2_{name}"] for name in ("in_sample", "leave_one_out", "leave_one_M_out")) > 0.99
    spread = gradient.std(0) * np.arange(10.0)
    assert list(result["coefficients"].values()) == pytest.approx(spread, abs=0.1)


def test_regression_on_noise_has_no_leave_one_out_r2(tmp_path):
    rng = np.random.default_rng(1)
    result = explain.regression(explain.read(write_gradients(tmp_path, rng.normal(size=(14, 10)), rng.normal(size=14))))
    assert result["r2_constant"] == pytest.approx(1 - (14 / 13) ** 2)
    assert result["r2_leave_one_out"] < 0.2
    assert result["r2_in_sample"] > result["r2_leave_one_out"]
    assert result["r2_leave_one_M_out"] is None  # there is only one M


def test_left_out_rows_influence_neither_scaling_nor_penalty(tmp_path):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(8, 10))
    y = X[:, 0] + 0.3 * rng.normal(size=8)
    result = explain.regression(explain.read(write_gradients(tmp_path, X, y)))
    for i, row in enumerate(result["checkpoints"]):
        others = np.delete(np.arange(8), i)
        centre, spread = X[others].mean(0), X[others].std(0)
        model = RidgeCV(explain.ALPHAS).fit((X[others] - centre) / spread, y[others])
        assert row["predicted"] == pytest.approx(model.predict((X[[i]] - centre) / spread)[0])
    press = sum((row["predicted"] - row["ood_score"]) ** 2 for row in result["checkpoints"])
    assert result["r2_leave_one_out"] == pytest.approx(1 - press / ((y - y.mean()) ** 2).sum())


@pytest.mark.parametrize("command", ["pca", "regression"])
def test_a_command_accepts_the_file_or_its_folder(measured, command, tmp_path):
    assert run(command, measured, "--output", tmp_path / "a") == 0
    assert run(command, measured.parent) == 0  # written into the folder of its input
    one, other = tmp_path / "a" / f"{command}.json", measured.with_name(f"{command}.json")
    assert read(one) == read(other)
    assert [(row["M"], row["step"]) for row in read(one)["checkpoints"]] == ORDER
    assert one.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


# ---- errors


def refused(capsys, *argv):
    capsys.readouterr()
    assert run(*argv) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_folders_that_cannot_be_analysed_are_refused(sweep, tmp_path, capsys):
    for command in ("scores", "gradients"):
        assert "holds no checkpoints_M*/checkpoint_step_*.ckpt: give the folder" in refused(capsys, command, tmp_path)
    shutil.copytree(sweep / "checkpoints_M2", tmp_path / "checkpoints_M2")
    save_member(tmp_path, 16, steps=2, sigma2=0.5)
    sentence = refused(capsys, "scores", tmp_path)
    assert "'sigma2': 0.5, 'task_seed': 0}, but" in sentence
    assert "'sigma2': 0.25, 'task_seed': 0}: give each sweep a separate folder" in sentence
    file = tmp_path / "checkpoints_M16" / "checkpoint_step_2.ckpt"
    file.write_bytes(file.read_bytes()[:2000])
    assert "checkpoint_step_2.ckpt is truncated or damaged" in refused(capsys, "scores", tmp_path)
    assert not list(tmp_path.glob("*.json"))
    assert "n_prompts must be at least 1, not 0" in refused(capsys, "scores", sweep, "--n_prompts", 0)
    assert "n_prompts must be at least 2" in refused(capsys, "gradients", sweep, "--n_prompts", 1)
    assert "n_samples must be at least 1" in refused(capsys, "gradients", sweep, "--n_ood_samples", 0)


def test_a_diverged_model_is_named(sweep, tmp_path, capsys):
    shutil.copytree(sweep / "checkpoints_M2", tmp_path / "checkpoints_M2")
    file = tmp_path / "checkpoints_M2" / "checkpoint_step_4.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["zoo_digest"]
    checkpoint["state_dict"]["model.readout.weight"].fill_(float("nan"))
    torch.save(checkpoint, file)
    message = refused(capsys, "gradients", tmp_path)
    assert "checkpoint_step_4.ckpt" in message
    assert "is not finite: its run had diverged" in message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpoints": []}', '{"checkpoints": [{"M": 2}]}', "\x00"])
@pytest.mark.parametrize("command", ["pca", "regression"])
def test_other_files_than_gradients_json_are_refused(command, text, tmp_path, capsys):
    (tmp_path / "scores.json").write_text(text)
    assert "scores.json is not a gradients.json: make one" in refused(capsys, command, tmp_path / "scores.json")


@pytest.mark.parametrize("command", ["pca", "regression"])
def test_too_few_or_equal_checkpoints_are_refused(command, tmp_path, capsys):
    assert "nowhere.json is not a gradients.json: make one" in refused(capsys, command, tmp_path / "nowhere.json")
    write_gradients(tmp_path, np.eye(2, 10), range(2))
    assert "has 2 of the at least 3 checkpoints that this takes" in refused(capsys, command, tmp_path)
    write_gradients(tmp_path, np.ones((3, 10)), [1, 1, 1])
    assert "all the same: there is nothing to explain" in refused(capsys, command, tmp_path)


def test_three_checkpoints_are_enough(tmp_path):
    write_gradients(tmp_path, np.random.default_rng(0).normal(size=(3, 10)), [1, 2, 4])
    assert run("pca", tmp_path) == run("regression", tmp_path) == 0


def test_a_result_replaces_files_only_when_complete(scored, tmp_path):
    figure = analysis.analysis_figures.scores(scored)
    analysis.write("scores", tmp_path, scored, figure)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        analysis.write("scores", tmp_path, scored | {"n_prompts": object()}, figure)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    analysis.write("scores", tmp_path, scored | {"n_prompts": float("nan")}, figure)
    assert json.loads((tmp_path / "scores.json").read_text())["n_prompts"] is None
