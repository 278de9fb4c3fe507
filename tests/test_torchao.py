"""bittorch.torchao in the real torchao."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bittorch
from tests import helpers

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore")

from torchao.core.config import config_from_dict, config_to_dict  # noqa: E402
from torchao.quantization import FqnToConfig, quantize_  # noqa: E402
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig  # noqa: E402

import bittorch.torchao  # noqa: E402

ROOT = Path(__file__).parent.parent
CONFIG = bittorch.TernaryQuantConfig(method="twn", activation_bits=8)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))


def test_both_steps_equal_our_own_functions() -> None:
    model, x = _model(), torch.randn(3, 64)
    own = bittorch.quantize_model(model, CONFIG)
    weights = [model[0].weight, model[2].weight]
    quantize_(model, QATConfig(CONFIG, step="prepare"))
    assert [type(layer) for layer in model] == [bittorch.TernaryLinear, nn.ReLU, bittorch.TernaryLinear]
    assert model[0].weight is weights[0]
    assert model[2].weight is weights[1]
    helpers.assert_same_bits(model(x), own(x))
    for net in (model, own):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(x).square().mean().backward()
        optimizer.step()
    quantize_(model, QATConfig(CONFIG, step="convert"))
    assert isinstance(model[0], bittorch.TernaryLinearInference)
    helpers.assert_same_bits(model(x), bittorch.export_for_inference(own)(x))


def test_a_configuration_packs_what_its_pattern_names() -> None:
    model, x = _model(), torch.randn(3, 64)
    expected = bittorch.export_for_inference(bittorch.quantize_model(model, CONFIG, skip="2"))(x)
    quantize_(model, FqnToConfig({"0": CONFIG, "re:2": None}), filter_fn=None)
    assert [type(layer) for layer in model] == [bittorch.TernaryLinearInference, nn.ReLU, nn.Linear]
    helpers.assert_same_bits(model(x), expected)


def test_a_configuration_survives_serialisation() -> None:
    assert config_from_dict(config_to_dict(CONFIG)) == CONFIG


def test_other_configurations_stay_those_of_torchao() -> None:
    model = _model()
    quantize_(model, QATConfig(weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32), step="prepare"))
    assert type(model[0]).__module__.startswith("torchao.")


def test_what_cannot_be_prepared_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear, .*torch\.nn\.Embedding become ternary, got LayerNorm"):
        quantize_(nn.LayerNorm(4), QATConfig(CONFIG), filter_fn=lambda module, name: True)
    model = _model()
    quantize_(model, QATConfig(CONFIG))
    with pytest.raises(ValueError, match=r"prepared with TernaryQuantConfig\(.*twn.*, got TernaryQuantConfig\(.*max"):
        quantize_(model, QATConfig(bittorch.TernaryQuantConfig(), step="convert"))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"convert the layer with weight \(32, 64\): its weight is torch.float64"):
        quantize_(_model().double(), QATConfig(CONFIG))
    with pytest.raises(ValueError, match=r"export the layer with weight \(32, 64\): it has forward hooks"):
        quantize_(model, QATConfig(CONFIG, step="convert"))


def test_other_configurations_do_not_undo_or_forget_ternary_layers() -> None:
    model = _model()
    quantize_(model, QATConfig(CONFIG))
    for config in (
        QATConfig(weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32)),
        QATConfig(step="convert"),
    ):
        with pytest.raises(
            ValueError, match=r"TernaryLinear\(.* is ternary.*QATConfig\(TernaryQuantConfig\(.*filter_fn"
        ):
            quantize_(model, config)
    assert isinstance(model[0], bittorch.TernaryLinear)


def test_without_torchao_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torchao'] = None; import bittorch.torchao"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "bittorch.torchao needs torchao>=0.18; pip install 'bittorch[torchao]'" in done.stderr
