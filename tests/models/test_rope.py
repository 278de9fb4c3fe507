import math

import pytest
import torch

from bittorch.models.rope import Rotation, rope_frequencies, rope_magnitude
from tests import helpers
from tests.models import tiny

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
YARNS = [YARN, {**YARN, "beta_fast": 40.0, "beta_slow": 1.5, "truncate": False, "attention_factor": 0.9}]
YARNS += [{**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}, {**YARN, "factor": 1.0}]


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}, LLAMA3, *YARNS], ids=str)
def test_frequencies_equal_those_of_transformers(scaling: dict | None) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_theta": 5e5, **(scaling or {"rope_type": "default"})}
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
    own = rope_frequencies(tiny.changed(rope_theta=5e5, rope_scaling=scaling))
    if scaling is None:
        expected = torch.tensor([5e5 ** (-2 * i / 16) for i in range(8)])
    else:
        expected, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
        assert rope_magnitude(tiny.changed(rope_theta=5e5, rope_scaling=scaling)) == pytest.approx(magnitude, rel=1e-12)
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=0)


SHORT, LONGER = [1 + i / 8 for i in range(8)], [2.0 + i for i in range(8)]
LONG = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONGER}


@pytest.mark.parametrize("extra", [{}, {"factor": 3.0}, {"attention_factor": 0.9}], ids=str)
@pytest.mark.parametrize("original", [64, 128, 300])
def test_longrope_chooses_by_the_context(original: int, extra: dict) -> None:
    """The context is 128 tokens: longer than, as long as, and shorter than the original one."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {**LONG, "original_max_position_embeddings": original, **extra}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
    config = transformers.LlamaConfig(**sizes, rope_parameters={"rope_theta": 5e5, **scaling})
    expected, magnitude = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=128)
    own = tiny.changed(rope_theta=5e5, rope_scaling=scaling)
    torch.testing.assert_close(rope_frequencies(own), expected, rtol=1e-6, atol=0)
    assert rope_magnitude(own) == pytest.approx(magnitude, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"long_factor": [1.0] * 7}, r"long_factor must be 8 numbers, got shape \(7,\)"),
        ({"short_factor": [1.0] * 7 + ["2"]}, "short_factor must be positive and finite, got "),
        ({"short_factor": None}, r"short_factor must be 8 numbers, got shape \(0,\)"),
        ({"original_max_position_embeddings": 1}, "original_max_position_embeddings must be above 1, got 1"),
        ({"attention_factor": float("nan")}, "longrope must have a positive attention_factor, got nan"),
        ({"factor": -2}, "longrope must have a positive factor, got -2"),
    ],
)
def test_entries_of_longrope_are_checked(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.changed(rope_scaling={**LONG, "original_max_position_embeddings": 64, **change})


def test_factors_divide_the_frequencies() -> None:
    plain = rope_frequencies(tiny.CONFIG)
    scaled = rope_frequencies(tiny.changed(rope_scaling={"rope_type": "factors", "factors": list(range(1, 9))}))
    torch.testing.assert_close(scaled * torch.arange(1, 9), plain)
    with pytest.raises(ValueError, match="factors"):
        rope_frequencies(tiny.changed(rope_scaling={"rope_type": "factors", "factors": [1, 2, 3]}))


def test_an_unknown_rope_type_is_named() -> None:
    with pytest.raises(ValueError, match="'dynamic'"):
        rope_frequencies(tiny.changed(rope_scaling={"rope_type": "dynamic", "factor": 2.0}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original_max_position_embeddings": None}, "a positive original_max_position_embeddings, got None"),
        ({"beta_fast": "32"}, "a positive beta_fast, got '32'"),
        ({"attention_factor": 0}, "a positive attention_factor, got 0"),
        ({"truncate": 1}, "truncate true or false, got 1"),
    ],
)
def test_entries_of_yarn_are_checked(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.changed(rope_scaling={**YARN, **change})


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_rotation_turns_pairs_as_complex_numbers(dtype: torch.dtype) -> None:
    frequencies = rope_frequencies(tiny.CONFIG)
    positions = torch.tensor([0, 1, 5, 100])
    x = helpers.randn(4, 3, 16, dtype=dtype)
    pairs = torch.complex(x.double()[..., :8], x.double()[..., 8:])
    angles = positions.double()[:, None] * frequencies.double()
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat((turned.real, turned.imag), -1)
    actual = Rotation(frequencies, positions, dtype).rotate_(x.clone().unflatten(-1, (2, 8))).flatten(-2)
    helpers.assert_near(actual, expected, {torch.float32: 3e-6}.get(dtype, 2 * helpers.TOLERANCE[dtype]))


def test_rotation_changes_its_argument_alone() -> None:
    whole = helpers.randn(2, 5, 16)
    before = whole.clone()
    Rotation(rope_frequencies(tiny.CONFIG), torch.tensor([3, 4]), torch.float32).rotate_(
        whole.unflatten(-1, (2, 8))[:, :3]
    )
    torch.testing.assert_close(whole[:, 3:], before[:, 3:], rtol=0, atol=0)
    assert not torch.equal(whole[:, :3], before[:, :3])
    assert math.isclose(float(whole.norm()), float(before.norm()), rel_tol=1e-5)
