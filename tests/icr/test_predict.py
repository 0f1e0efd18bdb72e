"""Use of a trained model: queries are independent, wrong prompts and files are refused with one sentence."""

import math

import numpy as np
import pytest
import torch

from tests.resume import train
from zoo.errors import UserError
from zoo.icr import ICRegConfig, ICRTransformer, evaluate_ood_score, load_model, predict, predict_from_prompt
from zoo.icr.predict import Query, ridge_from_prompt
from zoo.icr.references import ridge

CONFIG = ICRegConfig(D=3, K=6, M=4, sigma2=0.25, d_model=16, d_mlp=32, n_heads=2, n_layers=2)


@pytest.fixture(scope="module")
def model():
    """A model with large weights, whose predictions depend on all inputs."""
    model = ICRTransformer(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def prompt(n=4, q=5):
    generator = torch.Generator().manual_seed(1)
    sizes = ((n, 3), (n,), (q, 3))
    return [torch.randn(size, generator=generator) for size in sizes]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_queries_do_not_see_each_other(model, n, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 2)
    x, y, queries = prompt(n)
    together = predict_from_prompt(model, x, y, queries)
    assert together.shape == (5,)
    assert together.std() > 0.01
    one_by_one = [predict_from_prompt(model, x, y, query[None]) for query in queries]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        predict_from_prompt(model, x, y, queries.flip(0)), together.flip(0), rtol=1e-5, atol=1e-5
    )


def test_prediction_equals_the_models_output(model):
    x, y, queries = prompt(4, 1)
    whole = model(torch.cat([x, queries])[None], torch.cat([y, torch.tensor([123.0])])[None])
    torch.testing.assert_close(predict_from_prompt(model, x, y, queries), whole[:, -1].detach(), rtol=1e-5, atol=1e-5)
    after = predict_from_prompt(model, x, y + 1, queries)
    assert not torch.allclose(after, predict_from_prompt(model, x, y, queries))


def test_ridge_from_prompt_equals_its_formula(model):
    x, y, queries = prompt()
    w = torch.linalg.solve(x.T @ x + 0.25 * torch.eye(3), x.T @ y)
    torch.testing.assert_close(ridge_from_prompt(model, x, y, queries), queries @ w)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, y, q: (torch.zeros(6, 3), torch.zeros(6), q), "6 examples are too many: at most K - 1 = 5 fit"),
        (lambda x, y, q: (x[:, :2], y, q), r"x_context has shape \(4, 2\), and must be rows of D = 3 numbers"),
        (lambda x, y, q: (x, y, q[:, :2]), r"x_query has shape \(5, 2\), and must be rows of D = 3"),
        (lambda x, y, q: (x, y, q[0]), r"x_query has shape \(3,\), and must be rows"),
        (lambda x, y, q: (x, y[:3], q), r"y_context has shape \(3,\), and must have a number for each x_context"),
        (lambda x, y, q: (x, y[:, None], q), r"y_context has shape \(4, 1\)"),
        (lambda x, y, q: (x, y, "query"), "x_query must be numbers"),
        (lambda x, y, q: (x, [True, 2, 3, 4], q), "y_context must be numbers"),
        (lambda x, y, q: ([[1, 2, 3], [1]], y, q), "x_context must be numbers in rows of equal length"),
        (lambda x, y, q: (x.to(torch.complex64), y, q), "x_context must be real numbers"),
        (lambda x, y, q: (x, y, 1.0), r"x_query has shape \(\)"),
        (lambda x, y, q: (x, y * torch.nan, q), "a number is NaN or infinite"),
        (lambda x, y, q: (x / 0, y, q), "a number is NaN or infinite"),
        (lambda x, y, q: (x, y, q * torch.inf), "a number is NaN or infinite"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(model, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        predict_from_prompt(model, *change(*prompt()))


def test_predictions_that_are_not_finite_are_warned_of(model):
    x, y, queries = prompt()
    with pytest.warns(UserWarning, match="5 of 5 predictions are not finite: the numbers are too large"):
        assert predict_from_prompt(model, x * 1e30, y, queries).isnan().all()


def test_arrays_lists_and_other_dtypes_give_the_same_predictions(model):
    x, y, queries = (part.round() for part in prompt())
    expected, ridge_expected = predict_from_prompt(model, x, y, queries), ridge_from_prompt(model, x, y, queries)
    for convert in (
        lambda t: t.numpy(), lambda t: t.numpy().astype(np.int32), torch.Tensor.double, torch.Tensor.long,
        torch.Tensor.tolist,
    ):  # fmt: skip
        parts = [convert(part) for part in (x, y, queries)]
        assert torch.equal(predict_from_prompt(model, *parts), expected)
        torch.testing.assert_close(ridge_from_prompt(model, *parts).float(), ridge_expected)
    for nothing in ([], np.zeros((0, 3)), queries[:0]):
        assert predict_from_prompt(model, x, y, nothing).shape == (0,)
        assert ridge_from_prompt(model, x, y, nothing).shape == (0,)
    assert predict_from_prompt(model, [], [], queries).shape == (5,)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (torch.zeros(2, 7, 3), torch.zeros(2, 7), "a prompt has 1 to K = 6 places in this model, not 7"),
        (torch.zeros(2, 0, 3), torch.zeros(2, 0), "a prompt has 1 to K = 6 places in this model, not 0"),
        (torch.zeros(2, 6, 4), torch.zeros(2, 6), r"shapes \(B, k, D = 3\) and \(B, k\), not \(2, 6, 4\)"),
        (torch.zeros(2, 6, 3), torch.zeros(2, 5), r"not \(2, 6, 3\) and \(2, 5\)"),
        (torch.zeros(6, 3), torch.zeros(6), r"pass x\[None\] for a single prompt"),
        ("x", torch.zeros(6), "x must be numbers"),
    ],
)
def test_model_refuses_other_shapes(model, x, y, sentence):
    with pytest.raises(UserError, match=sentence):
        model(x, y)


def test_model_takes_arrays_of_any_floating_point_dtype(model):
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6)
    torch.testing.assert_close(model(x.double().numpy(), y.double()), model(x, y))
    assert model(x[:0], y[:0]).shape == (0, 6)


def test_ridge_of_large_numbers_is_its_limit():
    # One example v with y = 1, |v| so large that X'X + sigma2 I is singular in fp64: w = v / |v|^2.
    for size in (1e6, 1e7, 1e9, 1e20, 1e30):
        v = size * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        x = torch.stack([v, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)])[None]
        got = ridge(x, torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.25)
        assert got[0, 1].item() == pytest.approx(10 / (14 * size), rel=1e-6)
    # A large query does not round away the examples before it.
    x = torch.tensor([[[1.0], [1e12]]], dtype=torch.float64)
    assert ridge(x, torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.25)[0, 1] == pytest.approx(1e12 / 1.25)
    assert ridge(x * torch.nan, torch.ones(1, 2, dtype=torch.float64), 0.25)[0, 1].isnan()


def test_prompt_of_large_numbers_becomes_null_and_does_not_end_the_file(model):
    x, y, queries = prompt()
    batch = [Query(0, x, y, queries, 1), Query(1, 1e30 * x, y, queries, 3), Query(2, x, y, queries, 4)]
    with pytest.warns(UserWarning, match=r"line 3: the numbers are too large for the prediction, which is null there"):
        first, large, last = model.predict_step(batch, 0)
    assert [first["index"], large["index"], last["index"]] == [0, 1, 2]
    assert first["prediction"] == last["prediction"] == predict_from_prompt(model, x, y, queries).tolist()
    assert large["prediction"] == [None] * 5
    assert all(map(math.isfinite, large["ridge"]))


def test_ood_score_of_an_untrained_model():
    fresh = ICRTransformer(CONFIG).eval()  # predicts nearly 0
    score = evaluate_ood_score(fresh, n_samples=5000)
    assert score == pytest.approx(3 + 0.25, rel=0.05)
    assert evaluate_ood_score(fresh, n_samples=5000) == score
    assert evaluate_ood_score(fresh, n_samples=5000, seed=1) != score
    pool = CONFIG.pool().square().sum(-1).mean().item() + 0.25  # the score on tasks of the pool instead
    assert abs(pool - 3.25) > 0.5
    with pytest.raises(ValueError, match="n_samples must be at least 1, not 0"):
        evaluate_ood_score(fresh, n_samples=0)


def test_ood_score_covers_all_samples(model, monkeypatch):
    expected = evaluate_ood_score(model, n_samples=100)
    monkeypatch.setattr(predict, "BATCH", 33)
    assert evaluate_ood_score(model, n_samples=100) == pytest.approx(expected, rel=1e-6)


# ---- files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from zoo.datamodules import LinearRegressionTasks

    folder = tmp_path_factory.mktemp("icr")
    tasks = LinearRegressionTasks(D=3, K=6, M=4, sigma2=0.25, batch_size=4)
    options = {"hooks": ("on_train_batch_end",), "every": 10, "max_steps": 10, "limit_val_batches": 0}
    train(ICRTransformer(CONFIG), tasks, folder, **options)
    [path] = folder.glob("*.ckpt")
    return path


def test_load_model_restores_weights_and_config(checkpoint):
    model = load_model(checkpoint)
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert model.config == CONFIG
    assert not model.training
    assert load_model(str(checkpoint), CONFIG).config == CONFIG
    with pytest.raises(ValueError, match=r"was trained as ICRegConfig\(.*M=4.*, not as ICRegConfig\(.*M=64"):
        load_model(checkpoint, ICRegConfig())


def test_other_files_are_refused(checkpoint, tmp_path):
    other = torch.load(checkpoint, weights_only=True) | {"zoo": {"model": "zoo.llama.module.LlamaLM", "data": None}}
    other.pop("zoo_digest", None)
    path = tmp_path / "other.ckpt"
    torch.save(other, path)
    with pytest.raises(ValueError, match="is not a checkpoint of an ICRTransformer"):
        load_model(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of an ICRTransformer"):
        load_model(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, not a checkpoint"):
        load_model(path)
    path.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        load_model(path)
    with pytest.raises((ValueError, OSError), match=r"no\.ckpt"):
        load_model(tmp_path / "no.ckpt")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"d_model": None}, "lacks the setting d_model"),
        ({"d_model": "8"}, "d_model must be a whole number"),
        ({"d_model": 2**20}, "declares a model that is far larger than the tensors in the file"),
        ({"n_layers": 10**9}, "declares a model that is far larger than the tensors in the file"),
    ],
)
def test_damaged_settings_are_refused_before_memory_is_used(checkpoint, tmp_path, change, sentence):
    content = torch.load(checkpoint, weights_only=True)
    settings = content["hyper_parameters"] | change
    content["hyper_parameters"] = {name: value for name, value in settings.items() if value is not None}
    content.pop("zoo_digest", None)
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(UserError, match=rf"damaged\.ckpt.* {sentence}"):
        load_model(tmp_path / "damaged.ckpt")


def test_config_or_its_fields_but_not_both():
    with pytest.raises(ValueError, match="give a config or K, not both"):
        ICRTransformer(CONFIG, K=4)
    assert ICRTransformer(**vars(CONFIG)).config == CONFIG
