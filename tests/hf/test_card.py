"""The card of a packed model and its way to the hub; the hub itself is a mock."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

import bittorch
from tests.hf import tiny

pytest.importorskip("transformers")

import huggingface_hub

import bittorch.hf


@pytest.fixture
def packed() -> object:
    return bittorch.quantize_model(tiny.llama(), depth=2, skip="lm_head")


def test_card_says_what_it_is_and_how_to_load_it(packed: object) -> None:
    card = bittorch.hf.model_card(packed, "me/tiny-ternary", base_model="you/tiny")
    assert card.data.base_model == "you/tiny"
    assert {"bittorch", "ternary"} <= set(card.data.tags)
    layers = [m for m in packed.modules() if isinstance(m, bittorch.nn.PackedLayer)]
    stored, weights = (
        sum(m.weight_packed.nbytes + m.scale.nbytes for m in layers),
        2 * (2 * 64**2 + 2 * 32 * 64 + 3 * 64 * 128),
    )
    for text in (
        f"in {8 * stored / weights:.2f} bits",
        "14 packed layers",
        "sums of 2 planes",
        "import bittorch.hf",
        '("me/tiny-ternary")',
    ):
        assert text in card.content
    assert bittorch.hf.model_card(packed, "me/tiny").data.base_model is None
    packed.config.name_or_path = "you/base"
    assert "[you/base](https://huggingface.co/you/base)" in bittorch.hf.model_card(packed, "me/tiny").content
    with pytest.raises(ValueError, match="LlamaForCausalLM has no packed layer"):
        bittorch.hf.model_card(tiny.llama(), "me/tiny")


def test_push_is_one_commit_of_model_and_card(packed: object) -> None:
    seen: dict[str, bytes] = {}

    def upload(self: object, *, folder_path: str, **options: object) -> str:
        assert options == {"repo_id": "me/tiny", "commit_message": "first", "token": None, "create_pr": True}
        seen.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return "https://huggingface.co/me/tiny/commit/1"

    api = huggingface_hub.HfApi
    with (
        mock.patch.object(api, "create_repo", return_value=mock.Mock(repo_id="me/tiny")) as create,
        mock.patch.object(api, "upload_folder", upload),
    ):
        done = bittorch.hf.push_to_hub(packed, "me/tiny", base_model="you/base", commit_message="first", create_pr=True)
        with pytest.raises(TypeError, match="no option max_shards"):
            bittorch.hf.push_to_hub(packed, "me/tiny", max_shards=3)
    assert done.endswith("/commit/1")
    create.assert_called_once_with("me/tiny", private=None, exist_ok=True)
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} == set(seen)
    assert b"base_model: you/base" in seen["README.md"]


def test_what_cannot_be_saved_never_reaches_the_hub(packed: object) -> None:
    bittorch.quantize_(packed, filter_fn="lm_head")  # masters beside packed layers
    with (
        mock.patch.object(huggingface_hub.HfApi, "create_repo") as create,
        pytest.raises(ValueError, match="lm_head is a TernaryLinear in training"),
    ):
        bittorch.hf.push_to_hub(packed, "me/tiny")
    create.assert_not_called()


def test_an_error_of_the_hub_comes_through_and_leaves_nothing(packed: object, tmp_path: Path) -> None:
    api = huggingface_hub.HfApi
    with (
        mock.patch("tempfile.tempdir", str(tmp_path)),
        mock.patch.object(api, "create_repo", return_value=mock.Mock(repo_id="me/tiny")),
        mock.patch.object(api, "upload_folder", side_effect=OSError("connection lost")),
        pytest.raises(OSError, match="connection lost"),
    ):
        bittorch.hf.push_to_hub(packed, "me/tiny")
    assert not list(tmp_path.iterdir())
    with (
        mock.patch.object(api, "create_repo", side_effect=OSError("no right")),
        pytest.raises(OSError, match="no right"),
    ):
        bittorch.hf.push_to_hub(packed, "me/tiny")


def test_transformers_own_push_tags_the_repository(packed: object) -> None:
    assert {"bittorch", "ternary"} <= set(packed.model_tags)
