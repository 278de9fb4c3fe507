from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryLinearInference
from bittorch.array import TernaryArray
from bittorch.nn import PackedLayer
from bittorch.utils import lens
from tests.helpers import each, randn


def packed_linear(k: int = 10, n: int = 6, **config: Any) -> TernaryLinearInference:
    torch.manual_seed(0)
    layer = bittorch.TernaryLinear(k, n, config=bittorch.TernaryQuantConfig(**config))
    packed = bittorch.export_for_inference(layer)
    assert isinstance(packed, TernaryLinearInference)
    return packed


def codes_of(layer: PackedLayer) -> Tensor:
    return bittorch.ops.ternary_unpack(layer.weight_packed, None, layer.columns, torch.int8)


MASK = randn(6, 10, seed=3) > 0.5
KEYS: list[Any] = [
    (3, 5),
    2,
    -1,
    (slice(1, 4), 7),
    (slice(None), slice(2, 9)),
    MASK,
    (torch.tensor([0, 5]), [1, 2]),
    ...,
]


@each(("key", "value"), [(key, value) for key in KEYS for value in (-1, 0, 1)])
def test_keys_are_those_of_a_dense_matrix(key: Any, value: int) -> None:
    layer = packed_linear()
    dense = codes_of(layer)
    edit = lens(layer)
    assert torch.equal(edit[key], dense[key])
    before, memory = layer.weight_packed._version, layer.weight_packed.data_ptr()
    edit[key] = value
    dense[key] = value
    assert torch.equal(codes_of(layer), dense)
    bittorch.ops.check_packed(layer.weight_packed, 10)
    assert layer.weight_packed._version > before
    assert layer.weight_packed.data_ptr() == memory
    edit[np.arange(6) == 4, 3] = TernaryArray([1])
    dense[4, 3] = 1
    assert torch.equal(codes_of(layer), dense)
    edit[1] = values = torch.tensor([1.0, -1, 0, 1, 1, 0, 0, -1, -1, 1])
    assert torch.equal(codes_of(layer)[1], values.to(torch.int8))


def test_scales_deltas_and_undo() -> None:
    layer = packed_linear(k=16, group_size=8, granularity="group")
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    edit, codes = lens(layer), codes_of(layer)
    edit.scale[2] *= 0.5
    edit.scale[4, 1] = 3.0
    expected = state["scale"].clone()
    expected[2] *= 0.5
    expected[4, 1] = 3.0
    assert torch.equal(layer.scale, expected)
    assert torch.equal(edit.scale[4], expected[4])
    change = torch.zeros(2, 16, dtype=torch.int64)
    change[0], change[1, 3] = -codes[5], -2 * codes[1, 3]
    edit.add([5, 1], change)
    codes[5], codes[1, 3] = 0, -codes[1, 3]
    assert torch.equal(codes_of(layer), codes)
    edit.add([-6], torch.full((1, 16), 2), saturate=True)
    assert torch.equal(edit[0], torch.ones(16, dtype=torch.int8))
    assert edit.edits == 4
    edit.add([], torch.zeros(0, 16))
    edit.undo(2)
    assert torch.equal(codes_of(layer), codes)
    edit.undo()
    assert edit.edits == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


@each("config", [{}, {"activation_bits": 8}, {"activation_bits": "ternary"}, {"granularity": "tensor"}])
def test_delta_is_what_the_output_changes_by(config: dict[str, Any]) -> None:
    layer, x = packed_linear(**config), randn(5, 10)
    before, edit = layer(x), lens(layer)
    assert not edit.delta(x).any()
    edit[1, 4] = 1 - edit[1, 4].abs()
    edit[3, 1] = 1 - edit[3, 1].abs()
    edit[3, :4] = -1
    edit.scale[0] = 0.7
    found = edit.delta(x)
    assert torch.equal(found, layer(x).double() - before.double())
    if "granularity" not in config:
        assert not found[:, [2, 4, 5]].any()
        assert found[:, 1].any()
    edit.undo()
    assert torch.equal(layer(x), before)
    assert not edit.delta(x).any()


def test_convolutions_embeddings_and_tied_heads() -> None:
    conv = bittorch.export_for_inference(bittorch.TernaryConv2d(4, 3, 3))
    edit = lens(conv)
    assert edit.shape == (3, 36)
    edit[2] = 0
    x = randn(1, 4, 5, 5)
    assert torch.equal(conv(x)[:, 2], conv.bias[2].expand(1, 3, 3))
    table = bittorch.TernaryEmbeddingInference(6, 8)
    head = table.tied_head()
    lens(table)[1] = 1
    lens(table).scale[...] = 0.5
    assert torch.equal(table(torch.tensor(1)), torch.full((8,), 0.5))
    assert torch.equal(head(torch.ones(8)), torch.tensor([0.0, 4, 0, 0, 0, 0]))


@each(
    ("edit", "error", "message"),
    [
        (lambda e: e.__setitem__((0, 1), 2), ValueError, "-1, 0 or 1, got 2"),
        (lambda e: e.__setitem__(0, [0] * 9 + [0.5]), ValueError, r"got 0.5 at index \(9,\) of the value"),
        (lambda e: e.__setitem__((0, 0), float("nan")), ValueError, "got nan"),
        (lambda e: e.__setitem__((0, 0), torch.tensor(255, dtype=torch.uint8)), ValueError, "got 255"),
        (lambda e: e.__setitem__((0, 0), True), TypeError, "got torch.bool"),
        (lambda e: e.__setitem__((6, 0), 1), IndexError, "6"),
        (lambda e: e.__setitem__(0, [1, 0, 1]), RuntimeError, "3"),
        (lambda e: e.scale.__setitem__(1, float("nan")), ValueError, "finite float32, got nan"),
        (lambda e: e.scale.__setitem__(slice(0, 2), [1.0, 1e39]), ValueError, r"got .*e\+39 at index \(1,\)|got inf"),
        (lambda e: e.scale.__setitem__((1, 1), 1.0), IndexError, "too many indices"),
        (
            lambda e: e.add([0], torch.full((1, 10), 3)),
            ValueError,
            r"row 0, column 0 would be -?\d \+ 3; saturate=True",
        ),
        (lambda e: e.add([1, -5], torch.zeros(2, 10).long()), ValueError, r"rows must differ, got \[1, 1\]"),
        (lambda e: e.add([1], torch.zeros(1, 9).long()), ValueError, r"delta \(r, 10\), got \(1,\) and \(1, 9\)"),
        (lambda e: e.add([1], torch.zeros(1, 10)), TypeError, "delta must be integers, got torch.float32"),
        (lambda e: e.add([7], torch.zeros(1, 10).long()), IndexError, "7"),
        (lambda e: e.undo(1), ValueError, "from 0 to the 0 that were made, got 1"),
    ],
    ids=lambda case: str(case[2]),
)
def test_bad_edits_change_nothing(edit: Any, error: type[Exception], message: str) -> None:
    layer = packed_linear()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    view = lens(layer)
    with pytest.raises(error, match=message):
        edit(view)
    assert view.edits == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


def test_a_layer_that_others_changed_is_not_mixed() -> None:
    layer = packed_linear()
    edit = lens(layer)
    edit[0, 0] = 1
    layer.load_state_dict(packed_linear().state_dict())
    changes = (lambda: edit.undo(), lambda: edit.__setitem__((0, 0), 1), lambda: edit.scale.__setitem__(0, 1.0))
    reads = (lambda: edit[0], lambda: edit.scale[0], lambda: edit.delta(randn(2, 10)))
    for use in (*changes, *reads):
        with pytest.raises(RuntimeError, match="was moved, loaded or written to since"):
            use()


@each("huge", [2**63 - 1, -(2**63)])
def test_sums_do_not_overflow(huge: int) -> None:
    layer = packed_linear()
    edit, delta = lens(layer), torch.full((6, 10), huge)
    with pytest.raises(ValueError, match=rf"would be -?\d \+ {huge}; saturate=True"):
        edit.add(range(6), delta)
    edit.add(range(6), delta, saturate=True)
    assert bool((edit[:] == (1 if huge > 0 else -1)).all())


def test_what_has_no_lens() -> None:
    for module in (nn.Linear(4, 4), bittorch.TernaryLinear(4, 4)):
        with pytest.raises(TypeError, match=f"lens takes a packed layer, .* got {type(module).__name__}"):
            lens(module)
    with pytest.raises(ValueError, match=r"one plane, and .* has depth 2"):
        lens(TernaryLinearInference(8, 4, depth=2))
    with pytest.raises(ValueError, match=r"weight_packed of .* is on the meta device"):
        lens(TernaryLinearInference(8, 4, device="meta"))
    with torch.inference_mode():
        layer = TernaryLinearInference(8, 4)
    with pytest.raises(ValueError, match=r"made under torch.inference_mode"):
        lens(layer)
