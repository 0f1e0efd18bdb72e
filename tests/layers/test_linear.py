"""`linear` (by oneDNN or MKL) against F.linear, forward and backward."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from zoo.layers import linear as module
from zoo.layers.linear import by_onednn, is_intel_cpu, linear, product
from zoo.private_apis.torch_api import has_onednn_linear


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def by_either_library(request, monkeypatch):
    """Both libraries, whatever the CPU."""
    if request.param and not has_onednn_linear():
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(module, "ONEDNN", request.param)


@pytest.mark.usefixtures("by_either_library")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_equals_f_linear(shape, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    parts = [x, weight, *([torch.randn(6, requires_grad=True)] if bias else [])]
    output, expected = linear(*parts), F.linear(*parts)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(output)
    gradients = [torch.autograd.grad(out, parts, upstream) for out in (output, expected)]
    for gradient, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("by_either_library")
@pytest.mark.parametrize(("x_shape", "weight_shape"), [
    ((0, 5), (6, 5)), ((2, 0, 5), (6, 5)), ((3, 0), (6, 0)), ((3, 5), (0, 5)), ((5,), (6, 5)), ((3, 5), (5,)),
])  # fmt: skip
def test_empty_tensors_and_vectors_equal_f_linear(x_shape, weight_shape):
    parts = torch.randn(x_shape, requires_grad=True), torch.randn(weight_shape, requires_grad=True)
    output, expected = linear(*parts), F.linear(*parts)
    assert torch.equal(output, expected)
    gradients = [torch.autograd.grad(out.sum(), parts) for out in (output, expected)]
    torch.testing.assert_close(*gradients)
    if len(weight_shape) == 2:
        with torch.no_grad():
            assert torch.equal(product(*parts), expected)


@pytest.mark.usefixtures("by_either_library")
def test_a_bias_of_one_number_and_errors_equal_those_of_f_linear():
    x, weight, bias = torch.randn(3, 5), torch.randn(6, 5), torch.randn(1)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    for wrong in (torch.randn(6, 4), weight.double()):
        with pytest.raises(RuntimeError) as error:
            F.linear(x, wrong)
        with pytest.raises(RuntimeError, match=re.escape(str(error.value))):
            linear(x, wrong)


@pytest.mark.usefixtures("by_either_library")
def test_every_derivative_equals_that_of_f_linear():
    x, weight, bias = torch.randn(3, 4, 5), torch.randn(6, 5), torch.randn(6)
    tangents = tuple(torch.randn_like(part) for part in (x, weight, bias))

    def derivatives(function):
        def loss(*parts):
            return function(*parts).tanh().sum()

        def gradient_norm(*parts):  # a second derivative by autograd
            gradients = torch.autograd.grad(loss(*parts), parts, create_graph=True)
            return sum(gradient.square().sum() for gradient in gradients)

        parts = [part.clone().requires_grad_() for part in (x, weight, bias)]
        yield torch.autograd.grad(gradient_norm(*parts), parts)
        outputs = function(*parts)
        yield torch.autograd.grad(outputs, parts, torch.ones(2, *outputs.shape), is_grads_batched=True)
        yield torch.func.grad(loss, argnums=(0, 1, 2))(x, weight, bias)
        yield torch.func.vmap(function, in_dims=(0, None, None))(x, weight, bias)
        yield torch.func.jvp(function, (x, weight, bias), tangents)
        yield torch.func.hessian(loss)(x, weight, bias)
        for varying in ({0, 1, 2}, {0}, {1}, {2}):
            with forward_ad.dual_level():
                dual = [
                    forward_ad.make_dual(part, tangent) if i in varying else part
                    for i, (part, tangent) in enumerate(zip((x, weight, bias), tangents, strict=True))
                ]
                yield forward_ad.unpack_dual(function(*dual)).tangent

    for computed, expected in zip(list(derivatives(linear)), list(derivatives(F.linear)), strict=True):
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("by_either_library")
def test_only_tensors_that_require_gradients_get_them():
    x, weight = torch.randn(3, 5), torch.randn(6, 5, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(6, -1))


def test_other_dtypes_and_autocast_use_f_linear(monkeypatch):
    x, weight = torch.randn(3, 5), torch.randn(6, 5)
    assert not by_onednn(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(module, "ONEDNN", None)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.usefixtures("by_either_library")
def test_tracing_and_tensors_of_other_layouts_use_f_linear():
    layer, x = module.Linear(5, 6), torch.randn(3, 5)
    expected = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and sparse CSR is in beta
        torch.testing.assert_close(torch.jit.trace(layer, x)(x), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), expected)
        for other in (x.to_sparse(), x.to_sparse_csr()):
            torch.testing.assert_close(layer(other), expected)
            with torch.no_grad():
                torch.testing.assert_close(product(other, layer.weight, layer.bias), expected)
        nested = torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged)
        torch.testing.assert_close(layer(nested).values(), layer(torch.cat([x, x[:2]])))
    sparse = layer.weight.detach().to_sparse()
    torch.testing.assert_close(linear(x, sparse), F.linear(x, sparse))


@pytest.mark.usefixtures("by_either_library")
def test_a_product_may_use_given_memory():
    x, weight, memory = torch.randn(3, 5), torch.randn(6, 5), torch.empty(4, 6)
    torch.testing.assert_close(product(x, weight, out=memory[:3]), F.linear(x, weight))


def test_the_library_is_chosen_by_the_manufacturer_of_the_cpu(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    for vendor, is_intel in (("GenuineIntel", True), ("AuthenticAMD", False)):
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        assert is_intel_cpu(cpuinfo) == is_intel
        monkeypatch.setattr("platform.processor", lambda vendor=vendor: f"x86 Family 6, {vendor}")
        assert is_intel_cpu(tmp_path / "none") == is_intel
