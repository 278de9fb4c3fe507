"""What may stand for a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bittorch.models.token_numbers import token_numbers


@pytest.mark.parametrize("given", [[1, 2], (1, 2), torch.tensor([1, 2]), np.array([1, 2], np.int32)])
def test_integers_of_any_kind_are_token_numbers(given: Any) -> None:
    found = token_numbers(given, None, 3, "text 0")
    assert found == [1, 2]
    assert all(type(token) is int for token in found)


@pytest.mark.parametrize("given", [[1.5], ["1"], b"ab", 1, None, [[1]], torch.tensor([1.0])])
def test_nothing_else_is_made_an_integer(given: Any) -> None:
    with pytest.raises(TypeError, match="text 7 must be a text or a list of token numbers"):
        token_numbers(given, None, 300, "text 7")
