"""Chunked cross-entropy against torch's: value and gradients."""

import pytest
import torch
import torch.nn.functional as F

from tests.pretended_cuda import pretend_cuda
from zoo.errors import UserError
from zoo.layers import linear_nll as module
from zoo.layers.linear_nll import linear_nll
from zoo.private_apis.torch_api import has_onednn_linear


@pytest.fixture
def problem():
    hidden = torch.randn(37, 16, requires_grad=True)
    weight = (torch.randn(50, 16) * 0.3).requires_grad_()
    targets = torch.randint(50, (37,))
    targets[::5] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("rows", [1, 8, 100])
def test_equals_cross_entropy_for_any_chunk_size(problem, monkeypatch, rows):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", rows * 4 * 50)
    hidden, weight, targets = problem
    loss, expected = linear_nll(*problem), F.cross_entropy(F.linear(hidden, weight), targets)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(3 * loss, (hidden, weight))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("onednn", [True, False])
def test_blocks_of_rows_and_either_library_give_the_same_gradients(problem, monkeypatch, onednn):
    expected = torch.autograd.grad(F.cross_entropy(F.linear(*problem[:2]), problem[2]), problem[:2])
    monkeypatch.setattr("zoo.layers.linear.ONEDNN", onednn and has_onednn_linear())
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 8 * 4 * 50)
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * 4 * 50)
    torch.testing.assert_close(torch.autograd.grad(linear_nll(*problem), problem[:2]), expected)


def test_a_second_backward_pass_adds_the_same_gradients(problem):
    loss = linear_nll(*problem)
    loss.backward(retain_graph=True)
    first = [part.grad.clone() for part in problem[:2]]
    for part in problem[:2]:
        part.grad.zero_()  # in place: must not reach the gradients that the graph has saved
    loss.backward(retain_graph=True)
    loss.backward()
    for part, gradient in zip(problem[:2], first, strict=True):
        torch.testing.assert_close(part.grad, 2 * gradient)


@pytest.mark.parametrize("factor", [1, 2])
def test_gradients_changed_in_place_do_not_change_a_second_backward_pass(problem, factor):
    loss = factor * linear_nll(*problem)
    gradients = torch.autograd.grad(loss, problem[:2], retain_graph=True)
    expected = [gradient.clone() for gradient in gradients]
    for gradient in gradients:
        gradient.zero_()
    torch.testing.assert_close(list(torch.autograd.grad(loss, problem[:2])), expected, rtol=0, atol=0)


@pytest.mark.parametrize("target", [-1, -99, -101, 50, 63])
def test_targets_that_are_no_class_are_refused(problem, target):
    hidden, weight, targets = problem
    targets[3] = target
    with pytest.raises(UserError, match=f"targets hold {target}: each must be a class from 0 to 49, or -100"):
        linear_nll(hidden, weight, targets)
    with pytest.raises(UserError, match=f"targets hold {target}"), torch.no_grad():
        linear_nll(hidden, weight, targets)
    # Compiled code, and a GPU, whose logits are padded to 64 classes, leave it to torch's check of indices.
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        torch.compile(linear_nll, backend="aot_eager")(hidden, weight, targets)
    with pretend_cuda() as record:
        parts = hidden.detach().to("cuda"), weight.detach().to("cuda"), targets.to("cuda")
        with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
            linear_nll(*parts)
        assert record.synchronisations == []


def test_no_scored_target_gives_zero_loss_and_gradients(problem):
    hidden, weight, targets = problem
    loss = linear_nll(hidden, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_no_grad_gives_the_same_value(problem):
    loss = linear_nll(*problem)
    with torch.no_grad():
        assert torch.equal(linear_nll(*problem), loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_small_gradients_under_loss_scaling(problem, dtype):
    hidden, weight, targets = problem
    with torch.autocast("cpu", dtype=dtype):
        loss = linear_nll(*problem)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(F.linear(hidden, weight), targets)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    # A loss scale of 2^16, as with fp16, must not overflow, and small gradients must survive.
    ours = torch.autograd.grad(loss * 65536, (hidden, weight))
    theirs = torch.autograd.grad(expected, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert (a / 65536 - b).norm() < 2e-2 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_chunk_of_131072_tokens_neither_overflows_nor_loses_digits(monkeypatch, dtype):
    """The sum over positions of one frequent token's hidden states is about 260,000, beyond fp16's 65504."""
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", module.CHUNK_BYTES["cuda"])
    hidden = (torch.randn(131_072, 4) + 2).requires_grad_()
    weight = torch.zeros(257, 4, requires_grad=True)
    targets = torch.zeros(131_072, dtype=torch.int64)
    with torch.autocast("cpu", dtype=dtype):
        loss = linear_nll(hidden, weight, targets)
    [gradient] = torch.autograd.grad(65536 * loss, weight)
    onehot = F.one_hot(torch.zeros(1, dtype=torch.int64), 257)[0]
    expected = torch.outer(1 / 257 - onehot.double(), hidden.detach().double().mean(0))  # the softmax is uniform
    assert (gradient.double() / 65536 - expected).norm() < 3e-3 * expected.norm()


def test_fp64_is_exact_to_fp64(problem):
    hidden, weight, targets = problem
    double = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss, expected = linear_nll(*double, targets), F.cross_entropy(F.linear(*double), targets)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    ours, theirs = (torch.autograd.grad(value, double) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("rows", [8, 100])
def test_padded_classes_of_a_gpu_change_nothing(problem, monkeypatch, rows):
    monkeypatch.setitem(module.CHUNK_BYTES, "cuda", rows * 4 * 50)
    expected = linear_nll(*problem)
    gradients = torch.autograd.grad(expected, problem[:2])
    with pretend_cuda() as record:
        problem = [part.detach().to("cuda") for part in problem]
        loss = linear_nll(problem[0].requires_grad_(), problem[1].requires_grad_(), problem[2])
        on_gpu = torch.autograd.grad(loss, problem[:2])
        assert record.synchronisations == []
        assert on_gpu[1].shape == (50, 16)
        torch.testing.assert_close(loss.cpu(), expected)
        torch.testing.assert_close([part.cpu() for part in on_gpu], list(gradients))


def test_compiled_equals_eager(problem):
    compiled = torch.compile(linear_nll, backend="aot_eager")
    loss, expected = compiled(*problem), linear_nll(*problem)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, problem[:2]) for value in (loss, expected)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_cuda_product_sums_in_fp32(dtype):
    a, b = torch.full((2, 131_072), 1.0, dtype=dtype, device="cuda"), torch.ones(131_072, 3, dtype=dtype, device="cuda")
    total = torch.ones(2, 3, device="cuda")
    module._add_product(total, a, b)
    assert (total == 131_073).all()
