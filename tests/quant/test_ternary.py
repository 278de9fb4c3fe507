import copy
import dataclasses
import json
import pickle
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bittorch
from bittorch import TernaryConv2d, TernaryLinear, ops
from bittorch.quant import (
    TernaryQuantConfig,
    TernaryQuantizer,
    ternary,
    ternary_fake_quantize,
    ternary_quantize,
    ternary_quantize_ste,
)
from bittorch.quant.learned import LEARNED
from bittorch.quant.ternary import DEFAULT_METHOD, DEFAULT_SCALE, Method, ScaleRule
from tests import helpers

METHODS = ("max", "twn", "absmean", "absmedian", "optimal", "nm34")
RULES = ("ls", "mean", "max", "rms")
few = settings(max_examples=40, deadline=None, derandomize=True)

# Configuration


@pytest.mark.parametrize(
    ("method", "threshold", "scale"),
    [
        ("max", 0.05, "ls"),
        ("twn", 0.75, "ls"),
        ("absmean", 0.5, "mean"),
        ("absmedian", 0.5, "ls"),
        ("optimal", 0.0, "ls"),
    ],
)
def test_config_resolves_none_to_the_methods_own(method: str, threshold: float, scale: str) -> None:
    config = TernaryQuantConfig(method=method)
    assert (config.threshold_factor, config.scale) == (threshold, scale)
    assert (config.granularity, config.per_channel) == ("channel", True)
    assert (config.group_size, config.activation_bits) == (128, None)
    assert config.op_args() == (method, scale, threshold, "channel", 128)


def test_config_default_is_named_in_one_place() -> None:
    named = TernaryQuantConfig(None, True, method=DEFAULT_METHOD, scale=DEFAULT_SCALE, granularity="channel")
    assert TernaryQuantConfig() == named
    assert TernaryQuantConfig(scale="max").op_args()[:2] == (DEFAULT_METHOD, "max")
    assert TernaryLinear(4, 1).config == TernaryConv2d(1, 1, 1).config == TernaryQuantizer().config == named


def test_another_default_leaves_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ternary, "DEFAULT_METHOD", "twn")
    monkeypatch.setattr(ternary, "DEFAULT_SCALE", "rms")
    assert TernaryQuantConfig().op_args()[:3] == ("twn", "rms", 0.75)
    assert TernaryQuantConfig(method="max").op_args()[:3] == ("max", "ls", 0.05)
    assert TernaryQuantConfig(0.05) == TernaryQuantConfig.roadmap() == TernaryQuantConfig(method="max", scale="ls")
    assert TernaryLinear(4, 1, threshold_factor=0.05, per_channel=True).config == TernaryQuantConfig.roadmap()


def test_config_of_a_threshold_alone_is_the_documented_one() -> None:
    assert TernaryQuantConfig(0.05) == TernaryQuantConfig.roadmap()
    assert TernaryQuantConfig.roadmap().op_args() == ("max", "ls", 0.05, "channel", 128)
    assert TernaryQuantConfig(0.3).op_args()[:3] == ("max", "ls", 0.3)


def test_config_names_are_those_of_the_kernels() -> None:
    """One list is in C, one in Python; what one has, the other takes."""
    fixed = [method for method in get_args(Method) if method not in LEARNED]
    rules = [rule for rule in get_args(ScaleRule) if rule != "learned"]
    w = torch.ones(1, 4)
    with pytest.raises(ValueError, match=f"method must be one of {', '.join(fixed)}, got 'x'"):
        ops.ternary_quantize(w, "x", "ls", 0.0, "channel")
    with pytest.raises(ValueError, match=f"scale must be one of {', '.join(rules)}, got 'x'"):
        ops.ternary_quantize(w, "max", "x", 0.0, "channel")
    for method in get_args(Method):
        assert TernaryQuantConfig(method=method).method == method


def test_config_keeps_what_is_given() -> None:
    config = TernaryQuantConfig(0.2, method="twn", scale="max", granularity="group", group_size=64, activation_bits=8)
    assert config.op_args() == ("twn", "max", 0.2, "group", 64)
    assert config.activation_bits == 8
    assert TernaryQuantConfig(0).threshold_factor == 0.0
    assert isinstance(TernaryQuantConfig(1).threshold_factor, float)


def test_config_per_channel_false_is_granularity_tensor() -> None:
    assert TernaryQuantConfig(per_channel=False).granularity == "tensor"
    assert TernaryQuantConfig(granularity="tensor").per_channel is False
    assert TernaryQuantConfig(granularity="tensor") == TernaryQuantConfig(per_channel=False)


# FIELD N7
def test_config_group_size_alone_means_groups() -> None:
    assert TernaryQuantConfig(group_size=64) == TernaryQuantConfig(granularity="group", group_size=64)
    assert TernaryQuantConfig(group_size=128).granularity == "group"
    assert TernaryQuantConfig(group_size=None) == TernaryQuantConfig()
    assert ternary_quantize(helpers.randn(2, 128), group_size=64)[1].shape == (2, 2)


# FIELD N7
@pytest.mark.parametrize("fields", [{"per_channel": False}, {"granularity": "channel"}, {"granularity": "tensor"}])
def test_config_group_size_of_another_granularity_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match=r"group_size=64 means granularity='group', got granularity='(channel|tensor)'"
    ):
        TernaryQuantConfig(group_size=64, **fields)
    groups = TernaryQuantConfig(group_size=64)
    assert dataclasses.replace(groups, granularity="channel", group_size=None) == TernaryQuantConfig()


def test_config_fields_after_per_channel_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        TernaryQuantConfig(0.05, True, "twn")


@helpers.each(
    ("fields", "message"),
    [
        (
            {"method": "tern"},
            "method must be one of 'max', 'twn', 'absmean', 'absmedian', 'optimal', 'nm34', 'lsq', 'seq', 'ttq', "
            "got 'tern'",
        ),
        ({"method": "lsq", "scale": "ls"}, "scale must be one of 'learned', got 'ls'"),
        ({"method": "max", "scale": "learned"}, "scale must be one of 'ls', 'mean', 'max', 'rms', got 'learned'"),
        ({"method": "seq", "threshold_factor": 0.2}, "'seq' finds its own threshold.*0.2"),
        ({"method": "lsq", "ste": "clipped"}, "ste must be one of 'identity', got 'clipped'"),
        ({"ste": "tanh"}, "ste must be one of 'identity', 'clipped', got 'tanh'"),
        ({"method": "ttq", "activation_bits": 8}, "method 'ttq' takes floating activations, got activation_bits=8"),
        ({"scale": "l2"}, "scale must be one of 'ls', 'mean', 'max', 'rms', got 'l2'"),
        ({"granularity": "row"}, "granularity must be one of 'tensor', 'channel', 'group', got 'row'"),
        ({"threshold_factor": 1.5}, r"threshold_factor must be in \[0, 1\], got 1.5"),
        ({"threshold_factor": -0.1}, r"threshold_factor must be in \[0, 1\], got -0.1"),
        ({"threshold_factor": float("nan")}, r"threshold_factor must be in \[0, 1\], got nan"),
        ({"method": "optimal", "threshold_factor": 0.3}, "'optimal' finds its own threshold.*0.3"),
        ({"per_channel": False, "granularity": "channel"}, "per_channel=False .*tensor.*granularity='channel'"),
        ({"per_channel": False, "granularity": "group"}, "per_channel=False .*tensor.*granularity='group'"),
        ({"per_channel": None}, "per_channel must be one of True, False, got None"),
        ({"group_size": 6}, "group_size must be a positive multiple of 4, got 6"),
        ({"group_size": 0}, "group_size must be a positive multiple of 4, got 0"),
        ({"group_size": -4}, "group_size must be a positive multiple of 4, got -4"),
        ({"activation_bits": 4}, "activation_bits must be one of None, 8, 16, 24, got 4"),
        ({"activation_bits": 8.0}, r"activation_bits must be one of None, 8, 16, 24, got 8\.0"),  # FIELD R15
    ],
    ids=str,
)
def test_config_refuses_bad_values(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernaryQuantConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold_factor": "0.05"}, "threshold_factor must be a number, got '0.05'"),
        ({"threshold_factor": True}, "threshold_factor must be a number, got True"),
        ({"group_size": 64.0}, "group_size must be an integer, got 64.0"),
        ({"group_size": "64"}, "group_size must be an integer, got '64'"),
    ],
    ids=str,
)
def test_config_refuses_values_of_another_kind(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TernaryQuantConfig(**fields)


def test_config_of_numpy_numbers_is_plain() -> None:
    config = TernaryQuantConfig(np.float32(0.5), np.bool_(True), group_size=np.int64(64), activation_bits=np.int64(8))
    assert config == TernaryQuantConfig(0.5, group_size=64, activation_bits=8)
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_config_repr_shows_resolved_values_and_evaluates_to_itself() -> None:
    config = TernaryQuantConfig(method="twn", granularity="group", group_size=64)
    assert "threshold_factor=0.75" in repr(config)
    assert "scale='ls'" in repr(config)
    assert eval(repr(config), {"TernaryQuantConfig": TernaryQuantConfig}) == config
    assert repr(config) in repr(TernaryQuantizer(config))


_shares = st.one_of(
    st.fixed_dictionaries({"granularity": st.sampled_from([None, "tensor", "channel", "group"])}),
    st.fixed_dictionaries(
        {"granularity": st.sampled_from([None, "group"]), "group_size": st.integers(1, 100).map(lambda n: 4 * n)}
    ),
)
_configs = st.builds(
    lambda threshold, shares, **fields: TernaryQuantConfig(threshold, **shares, **fields),
    st.one_of(st.none(), st.floats(0, 1)),
    _shares,
    method=st.sampled_from(METHODS[:4]),
    scale=st.sampled_from([None, *RULES]),
    activation_bits=st.sampled_from([None, 8]),
) | st.just(TernaryQuantConfig(method="optimal"))


@few
@given(_configs)
def test_config_survives_dict_json_pickle_and_copy(config: TernaryQuantConfig) -> None:
    values = config.to_dict()
    assert values["quant_type"] == "ternary"
    assert TernaryQuantConfig.from_dict(values) == config
    assert TernaryQuantConfig.from_dict(json.loads(json.dumps(values))) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config


def test_check_in_features_names_both_values() -> None:
    config = TernaryQuantConfig(granularity="group", group_size=64)
    config.check_in_features(128)
    with pytest.raises(ValueError, match="group_size=64 and in_features=100"):
        config.check_in_features(100)
    TernaryQuantConfig().check_in_features(100)


# Quantising


@helpers.each("method", METHODS)
@helpers.each("granularity", helpers.GRANULARITIES, ids=str)
def test_quantize_gives_the_codes_and_scale_of_the_op(method: str, granularity: helpers.Granularity) -> None:
    w = helpers.randn(6, 128)
    fields = {"method": method, "granularity": granularity.name, "group_size": granularity.group or 128}
    codes, scale = ternary_quantize(w, **fields)
    packed, expected = ops.ternary_quantize(w, *TernaryQuantConfig(**fields).op_args())
    assert codes.dtype == torch.int8
    assert torch.equal(ops.ternary_pack(codes), packed)
    assert torch.equal(scale, expected)
    assert scale.shape == granularity.scale_shape(6, 128)


def test_quantize_of_known_weights() -> None:
    w = torch.tensor([[1.0, -2.0, 0.05, 3.0], [0.0, 0.0, 0.0, 0.0]])
    for arguments, expected in (((), (14.0025 / 3) ** 0.5), ((0.05,), 2.0)):
        codes, scale = ternary_quantize(w, *arguments)
        assert codes.tolist() == [[1, -1, 0, 1], [0, 0, 0, 0]]
        assert scale.tolist() == torch.tensor([expected, 1e-5]).tolist()


def test_quantize_positional_arguments_are_threshold_and_per_channel() -> None:
    codes, scale = ternary_quantize(torch.tensor([[1.0, -2.0], [4.0, 0.1]]), 0.5, False)
    assert codes.tolist() == [[0, 0], [1, 0]]
    assert scale.tolist() == [4.0]


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (2, 3, 4), (3, 0), (0, 4)], ids=str)
def test_quantize_keeps_the_shape_of_any_weight(shape: tuple[int, ...]) -> None:
    w, quantizer = helpers.randn(*shape), TernaryQuantizer()
    codes, scale = quantizer.quantize(w)
    assert codes.shape == shape
    assert scale.shape == shape[:1]
    value = quantizer.dequantize(codes, scale)
    assert value.shape == shape
    rows = codes.double().flatten(1) * scale.double()[:, None]
    assert torch.equal(value.double().flatten(1), rows)
    assert torch.equal(quantizer.fake_quantize(w), value)


@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_quantize_refuses_fewer_than_two_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two dimensions"):
        ternary_quantize(torch.ones(shape))


@helpers.each("value", [float("nan"), float("inf"), float("-inf")])
@helpers.each("method", METHODS)
@helpers.each("quantize", [ternary_quantize, ternary_quantize_ste, ternary_fake_quantize])
def test_quantize_refuses_non_finite_weights_with_row(value: float, method: str, quantize: object) -> None:
    w = helpers.randn(4, 8)
    w[2, 5] = w[3, 1] = value
    with pytest.raises(ValueError, match="2 NaN or Inf of 32 values, the first in row 2"):
        quantize(w, method=method)


def test_quantize_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="group_size=128 and in_features=100"):
        ternary_quantize(torch.ones(2, 100), granularity="group")


def test_quantize_refuses_float64() -> None:
    with pytest.raises(TypeError, match="w must be float32"):
        ternary_quantize(torch.ones(2, 4).double())


@pytest.mark.parametrize("granularity", helpers.GRANULARITIES, ids=str)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_fake_quantize_forward_is_codes_times_scale_and_gradient_the_identity(
    granularity: helpers.Granularity, dtype: torch.dtype
) -> None:
    w = helpers.randn(6, 128, dtype=dtype).requires_grad_()
    fields = {"granularity": granularity.name, "group_size": granularity.group or 128}
    codes, scale = ternary_quantize(w, **fields)
    value = ternary_fake_quantize(w, **fields)
    assert not codes.requires_grad
    assert not scale.requires_grad
    assert torch.equal(value, helpers.dense(codes, scale).float().to(dtype))
    g = helpers.randn(6, 128, seed=4, dtype=dtype)
    value.backward(g)
    assert torch.equal(w.grad, g)


@pytest.mark.parametrize("granularity", helpers.GRANULARITIES, ids=str)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_ste_gives_codes_with_the_gradient_of_the_identity_and_a_frozen_scale(
    granularity: helpers.Granularity, dtype: torch.dtype
) -> None:
    w = helpers.randn(6, 128, dtype=dtype).requires_grad_()
    fields = {"granularity": granularity.name, "group_size": granularity.group or 128}
    codes, scale = ternary_quantize(w, **fields)
    codes_ste, scale_ste = ternary_quantize_ste(w, **fields)
    assert codes_ste.dtype == dtype
    assert torch.equal(codes_ste, codes.to(dtype))
    assert torch.equal(scale_ste, scale)
    assert not scale_ste.requires_grad
    g = helpers.randn(6, 128, seed=4, dtype=dtype)
    codes_ste.backward(g)
    assert torch.equal(w.grad, g)


def test_ste_has_no_second_derivative() -> None:
    w = helpers.randn(3, 4).requires_grad_()
    (grad,) = torch.autograd.grad(ternary_fake_quantize(w).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_ste_does_not_share_memory_with_the_weight() -> None:
    w = torch.tensor([[1.0, -1.0]])
    ternary_fake_quantize(w).zero_()
    ternary_quantize_ste(w)[0].zero_()
    assert w.tolist() == [[1.0, -1.0]]


_matrices = st.tuples(st.integers(1, 6), st.integers(1, 70), st.integers(0, 2**31)).map(
    lambda t: helpers.randn(t[0], t[1], seed=t[2])
)


@few
@given(_matrices, st.sampled_from(METHODS), st.sampled_from(RULES), st.sampled_from(["tensor", "channel"]))
def test_quantising_a_quantised_weight_changes_nothing(
    w: torch.Tensor, method: str, rule: str, granularity: str
) -> None:
    """A weight that is codes * scale has those codes; all but the mean of a sparse row give back its scale."""
    quantizer = TernaryQuantizer(TernaryQuantConfig(method=method, scale=rule, granularity=granularity))
    codes, scale = quantizer.quantize(w)
    again, same_scale = quantizer.quantize(quantizer.dequantize(codes, scale))
    assert torch.equal(again, codes)
    if rule in ("ls", "rms"):
        torch.testing.assert_close(same_scale, scale, rtol=1e-6, atol=0)


@few
@given(_matrices, st.sampled_from(METHODS))
def test_quantising_commutes_with_sign_and_powers_of_two(w: torch.Tensor, method: str) -> None:
    codes, scale = ternary_quantize(w, method=method)
    flipped, same = ternary_quantize(-w, method=method)
    assert torch.equal(flipped, -codes)
    assert torch.equal(same, scale)
    doubled, twice = ternary_quantize(w * 4, method=method)
    assert torch.equal(doubled, codes)
    assert torch.equal(twice, scale * 4)


@few
@given(st.integers(1, 9), st.integers(0, 70), st.integers(0, 2**31))
def test_pack_and_unpack_are_inverse(n: int, k: int, seed: int) -> None:
    codes = helpers.random_codes(n, k, seed)
    packed = ops.ternary_pack(codes)
    assert torch.equal(ops.ternary_unpack(packed, None, k, torch.int8), codes)
    assert (ops.ternary_check(packed, k) == -1).all()


def test_quantising_does_not_change_the_weight() -> None:
    w = helpers.randn(5, 9)
    before = w.clone()
    for method in METHODS:
        ternary_quantize(w, method=method)
    assert torch.equal(w, before)


def test_package_re_exports_the_quantiser() -> None:
    assert bittorch.ternary_quantize is ternary_quantize
    assert bittorch.ternary_quantize_ste is ternary_quantize_ste
    assert bittorch.TernaryQuantConfig is TernaryQuantConfig
