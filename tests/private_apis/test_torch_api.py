"""Private APIs of torch: these tests fail when torch changes what zoo.private_apis.torch_api relies on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.private_apis.torch_api import (
    FixedBuffers,
    fused_adamw,
    has_fused_adamw,
    has_onednn_linear,
    keeps_graph,
    onednn_linear,
    transforms_are_active,
    version,
)


def test_fused_adamw_has_the_signature_that_we_call():
    assert has_fused_adamw()
    schema = torch.ops.aten._fused_adamw_.default._schema
    names = [argument.name for argument in schema.arguments]
    assert names == [
        "self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps", "lr", "beta1", "beta2",
        "weight_decay", "eps", "amsgrad", "maximize", "grad_scale", "found_inf",
    ]  # fmt: skip


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fused_adamw_equals_torchs_adamw(weight_decay):
    settings = {"lr": 0.01, "eps": 1e-3, "weight_decay": weight_decay}
    parameter = torch.randn(5, 3, requires_grad=True)
    values, m, v = parameter.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.99), **settings)
    for step in range(1, 4):
        parameter.grad = torch.randn(5, 3)
        optimizer.step()
        steps = [torch.tensor(float(step))]
        fused_adamw([values], [parameter.grad], [m], [v], steps, beta1=0.9, beta2=0.99, **settings)
        torch.testing.assert_close(values, parameter.detach(), rtol=1e-6, atol=1e-6)
        assert steps[0] == step  # the kernel does not count


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_linear_equals_f_linear(bias):
    assert has_onednn_linear()
    x, weight, vector = torch.randn(2, 7, 5), torch.randn(6, 5), torch.randn(6) if bias else None
    torch.testing.assert_close(onednn_linear(x, weight, vector), F.linear(x, weight, vector))
    transposed = torch.randn(5, 6).T  # as backward passes call it
    torch.testing.assert_close(onednn_linear(x, transposed), F.linear(x, transposed))


class Table(FixedBuffers):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 7))
        self.weight = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_fp32_buffers_keep_their_values_when_the_module_is_cast(cast):
    module = nn.Sequential(Table())
    getattr(module, cast)()
    assert torch.equal(module[0].table, torch.linspace(0, 1, 7))
    assert module[0].table.dtype == torch.float32
    assert module[0].weight.dtype != torch.float32


def test_fp32_buffers_follow_the_device():
    module = Table().to("meta")
    assert module.table.device.type == "meta"
    assert module.half().table.dtype == torch.float32


def test_version_counts_changes_in_place():
    tensor = torch.zeros(3)
    before = version(tensor)
    tensor.add_(1)
    assert version(tensor) == before + 1
    with torch.inference_mode():
        assert version(torch.zeros(3).add_(1)) == 0


def test_transforms_are_active_only_inside_of_one():
    assert not transforms_are_active()
    seen = []
    torch.func.vmap(lambda x: seen.append(transforms_are_active()) or x)(torch.zeros(2))
    assert seen == [True]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_backward_pass_knows_whether_its_graph_is_kept(keeps):
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(keeps_graph())
            return grad

    seen = []
    Identity.apply(torch.ones(1, requires_grad=True)).backward(retain_graph=keeps)
    assert seen == [keeps]
