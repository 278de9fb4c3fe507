"""Layers whose weights a model reads without calling them."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import bittorch
from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig, export_for_inference, quantize_
from bittorch.utils import AccuracyDoctor, summary
from tests import helpers


class _Attention(nn.Module):
    """Attention as torchvision's Swin has it: the forward hands the weights of its layers to a function."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias).view(samples, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(samples, tokens, width)
        return F.linear(y, self.proj.weight, self.proj.bias)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


def _block() -> _Block:
    torch.manual_seed(0)
    return _Block()


UNCALLED = r"^attn\.qkv, attn\.proj was never called, though other ternary layers were: .* skip="


def test_layers_that_are_read_without_a_call_are_named() -> None:  # FIELD T2
    model, x = _block(), helpers.randn(2, 5, 16)
    quantize_(model)
    doctor = AccuracyDoctor(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary(model)  # nothing has run yet, so nothing is known
        assert doctor.check() == []
    model(x)
    for report in (summary, export_for_inference):
        with pytest.warns(UserWarning, match=UNCALLED) as caught:
            result = report(model)
        assert caught[0].filename == __file__
    found = doctor.check()
    assert [(finding.layer, finding.kind) for finding in found] == [
        ("attn.qkv", "never_called"),
        ("attn.proj", "never_called"),
    ]
    with pytest.raises(RuntimeError, match=r"^the values of attn\.qkv\.weight are read, but this layer is packed"):
        result(x)


@pytest.mark.slow
def test_mamba_reads_the_weight_of_dt_proj() -> None:  # FIELD T2
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = transformers.MambaForCausalLM(config).eval()
    quantize_(model, skip=["*.in_proj", "*.conv1d"])
    with torch.no_grad():
        model(torch.arange(6)[None])
    with pytest.warns(UserWarning, match=r"^backbone\.layers\.0\.mixer\.dt_proj was never called"):
        packed = export_for_inference(model)
    with pytest.raises(RuntimeError, match=r"mixer\.dt_proj\.weight are read"):
        packed(torch.arange(6)[None])


def test_nothing_is_said_of_layers_that_ran_or_stay_dense() -> None:  # FIELD T2
    model = nn.Sequential(TernaryConv2d(1, 1, 1), TernaryLinear(4, 4), TernaryLinear(4, 4, quantize=False))
    model[:2](torch.ones(1, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary(model)
        export_for_inference(model)
        block = _block()
        quantize_(block, skip="attn.*")
        block(helpers.randn(2, 5, 16))
        export_for_inference(block)


def test_a_call_is_noted_by_every_kind_of_program() -> None:  # FIELD T2
    x = helpers.randn(2, 4)

    def fresh() -> nn.Sequential:
        return nn.Sequential(TernaryLinear(4, 4), TernaryLinear(4, 4, config=TernaryQuantConfig(ste="clipped")))

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = fresh()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(3):
        compiled(x)
    assert counter.frame_count == 1
    assert all(layer.forward_ran for layer in model)
    before = set(model.state_dict())
    exported = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.export.export(exported.eval(), (x,), strict=True)
    assert set(exported.state_dict()) == before
    called = fresh()
    torch.func.functional_call(called, dict(called.named_parameters()), (x,))
    assert all(layer.forward_ran for layer in called)


def test_summary_and_export_of_conversions_without_a_run_say_nothing() -> None:
    model = _block()
    quantize_(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(summary(model).layers) == 4
        bittorch.export_for_inference(model)
