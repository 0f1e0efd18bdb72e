"""Every model on pretended CUDA tensors: no device mismatch, the values of a CPU, and only deterministic operations."""

import pytest
import torch

from tests.pretended_cuda import DeviceMismatch, on_cuda, pretend_cuda
from tests.shared.test_precisions import CASES, data, model
from zoo.datamodules.linear_regression_tasks import LinearRegressionTasks
from zoo.errors import UserError
from zoo.icr.evaluation import EvaluationBatch, add_references
from zoo.icr.task import Prompts
from zoo.optim import AdamW
from zoo.training.batches import TextBatch

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")  # the LSTM looks for it


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def prepared(case):
    """A model with fitted scales, and a batch."""
    module, batch = model(case).eval(), next(iter(data(case)))
    if case in ("lstm", "transformer", "mlp"):
        module.fit_scales(batch.targets.numpy(), None if batch.features is None else batch.features.numpy())
    if case == "lstm":
        batch = batch._replace(lengths=batch.padding_mask.sum(1).tolist())
    if case == "RegressLM":
        batch = module.with_number_tokens(batch)
    if case == "ICRTransformer":
        return module, Prompts(*batch)
    return module, batch if isinstance(batch, TextBatch) else tuple(batch)


def moved(batch):
    """The batch on the pretended device."""
    parts = [part.to("cuda") if isinstance(part, torch.Tensor) else part for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def loss_of(case, module, batch):
    if case in ("LlamaLM", "RevDEQLM"):
        return module.model.loss(*batch)
    if case == "LlamaClassifier":
        return torch.nn.functional.cross_entropy(module(batch), batch.targets[:, 0].long())
    return module.losses(batch).mean()


@pytest.mark.parametrize("case", CASES)
def test_training_and_prediction(case, deterministic):
    module, batch = prepared(case)
    expected = loss_of(case, module, batch).item()
    rows = module.predict_step(batch, 0)
    with pretend_cuda() as record:
        on_cuda(module)
        batch = moved(batch)
        optimizer = AdamW(module.parameters(), lr=0.0)
        loss = loss_of(case, module, batch)
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        on_device = module.predict_step(batch, 0)
    assert not record.nondeterministic
    assert len(on_device) == len(rows)
    for name in {"prediction", "loss"} & rows[0].keys():
        expected, got = ([row[name] for row in each] for each in (rows, on_device))
        assert torch.allclose(torch.tensor(got), torch.tensor(expected), rtol=1e-4, atol=1e-5), name


def test_evaluation_of_icr(deterministic):
    module = model("ICRTransformer").eval()
    tasks = LinearRegressionTasks(D=3, K=4, M=8, n_val=8, n_test=8)
    prompts = tasks.evaluation("val").true.prompts
    expected = add_references(prompts, module.config)
    with pretend_cuda() as record:
        on_cuda(module)
        evaluation = add_references(moved(prompts), module.config)
        module.validation_step(EvaluationBatch(evaluation, evaluation), 0)
        for name, answer in expected.answers.items():
            torch.testing.assert_close(evaluation.answers[name].cpu(), answer)
    assert not record.nondeterministic


@pytest.mark.parametrize("case", ["LlamaLM", "RevDEQLM"])
def test_generation(case, deterministic):
    network = model(case).model
    tokens = torch.randint(257, (2, 5))
    expected = network.generate(tokens, 4, temperature=1.0, top_p=0.9, seed=0)
    with pretend_cuda() as record:
        on_cuda(network)
        generated = network.generate(tokens.to("cuda"), 4, temperature=1.0, top_p=0.9, seed=0)
        assert generated.device.type == "cuda"
        assert torch.equal(generated.cpu(), expected)
    assert not record.nondeterministic


@pytest.mark.parametrize(("stop", "waits_per_token"), [((), 0), ((256,), 1)])
def test_nan_logits_are_an_error_that_costs_no_further_synchronisation(stop, waits_per_token):
    network = model("LlamaLM").model
    with pretend_cuda() as record:
        on_cuda(network)
        tokens = torch.randint(255, (2, 5)).to("cuda")
        waits = []
        for count in (4, 8):
            record.clear()
            network.generate(tokens, count, temperature=0, stop=stop)
            waits.append(len(record.synchronisations))
        assert waits[1] - waits[0] == 4 * waits_per_token
        network.norm.weight.data.fill_(torch.nan)
        for temperature in (0, 1):
            with pytest.raises(UserError, match="the model's logits are NaN"):
                network.generate(tokens, 4, temperature=temperature, stop=stop, seed=0)


def test_the_helper_finds_faults():
    """A mismatch, a synchronisation, a copy, and an operation without a deterministic kernel."""
    with pretend_cuda() as record:
        x = torch.ones(3, device="cuda")
        with pytest.raises(DeviceMismatch):
            x + torch.ones(3)
        assert x.sum() + torch.tensor(1.0) == 4  # a CPU scalar is allowed; the comparison synchronises
        assert x[torch.ones(3, dtype=torch.bool, device="cuda")].shape == (3,)
        assert x.cumsum(0).tolist() == [1, 2, 3]
        torch.zeros(2).to(x)
    expected = ["aten._local_scalar_dense.default", "aten.index.Tensor with a boolean index", "tolist"]
    assert record.synchronisations == expected
    assert record.copies_to_device == ["to"]
    assert record.nondeterministic == ["aten.cumsum.default"]
