"""Models of transformers with random weights, and whether ours say what they say from wherever they come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.io import LossyError, convert, open_checkpoint, save
from bittorch.models.rules import Linear, NormedLinear, walk
from bittorch.ops import reference
from tests import helpers
from tests.models.io.gguf_files import NO_TOKENS, write
from tests.models.io.tiny import assert_same, model

transformers = pytest.importorskip("transformers")
IDS = torch.randint(0, 300, (2, 24), generator=helpers.seeded(3))
SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def made(kind: str, config_kind: str | None = None, **changes: Any) -> Any:
    """A model of a class of transformers, with the same weights each time; its configuration may have another name.

    They keep the size of what passes; norms and biases are not neutral.
    """
    rope = {"rope_type": "default", "rope_theta": 1e6}
    settings = {**SIZES, **HEADS, "rope_parameters": rope, **changes}
    torch.manual_seed(1)
    config = getattr(transformers, f"{config_kind or kind}Config")(**settings, eos_token_id=None, bos_token_id=None)
    net = getattr(transformers, f"{kind}ForCausalLM")(config)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return net.eval()


def saved(net: Any, folder: Path, **changes: Any) -> Path:
    """The model's directory, some entries of whose config.json say something else."""
    net.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder


def assert_alike(found: LanguageModel, net: Any) -> None:
    """Logits in float32 within 1e-4, greedy tokens equal."""
    with torch.inference_mode():
        assert float((found(IDS) - net(IDS).logits).abs().max()) < 1e-4
        theirs = net.generate(IDS, max_new_tokens=8, do_sample=False, pad_token_id=0)[:, IDS.shape[1] :]
    ours = found.stream(IDS.tolist(), max_new_tokens=8, temperature=0.0).run().tokens
    assert ours == theirs.tolist()


def assert_alike_from_everywhere(net: Any, architecture: str, folder: Path) -> None:
    """From memory, transformers' directory, our own, and a GGUF file of ours."""
    assert_alike(LanguageModel.from_transformers(net), net)
    net.save_pretrained(folder / "hf")
    found = LanguageModel.from_pretrained(folder / "hf", tokenizer=False)
    assert found.config.architecture == architecture
    assert_alike(found, net)
    convert(folder / "hf", folder / "own", to="bittorch", allow_dense=True)
    assert_alike(LanguageModel.from_pretrained(folder / "own", tokenizer=False), net)
    convert(folder / "own", folder / "x.gguf", to="gguf-tq2_0", allow_dense=True)
    assert_alike(LanguageModel.from_pretrained(folder / "x.gguf", tokenizer=False), net)


def assert_alike_but_from_gguf(net: Any, folder: Path, message: str) -> None:
    """From our own directory; GGUF has no entry for something of it, as the message says."""
    net.save_pretrained(folder / "hf")
    convert(folder / "hf", folder / "own", to="bittorch", allow_dense=True)
    assert_alike(LanguageModel.from_pretrained(folder / "own", tokenizer=False), net)
    with pytest.raises(LossyError, match=message):
        convert(folder / "hf", folder / "x.gguf", to="gguf-tq2_0", allow_dense=True)


def rounded(x: Tensor) -> Tensor:
    """Activations as W1.58A8 layers round them."""
    factor = 127 / x.abs().amax(-1, keepdim=True)
    return (x * factor).round() / factor


PACKED_TARGETS = ("bittorch", "bittorch-base3", "bitnet", "compressed-tensors", "gguf-tq1_0", "gguf-q2_0", "gguf-i2_s")


def assert_packed_alike_from_everywhere(
    config: ModelConfig, folder: Path, targets: Sequence[str] = PACKED_TARGETS
) -> None:
    """Random ternary projections: each layer within 1e-6 of the dense product, every format's tensors the same.

    Args:
        config: of rows of a multiple of 256.
        folder: where to write.
        targets: the formats.
    """
    config = dataclasses.replace(config, activation_bits=8)
    source = model(config)
    first = LanguageModel.from_checkpoint(source, LoadOptions(activation_bits=None), tokenizer=False)
    ids, layers = IDS % config.vocab_size, 0
    for block, name, rule, prefix in walk(first):
        if isinstance(rule, Linear):
            x, outputs = helpers.randn(5, rule.columns, seed=layers), []
            for part in rule.parts:
                packed = source.packed(f"{prefix}{part.name}.weight")
                codes = reference.ternary_unpack(packed.weight_packed, None, rule.columns, torch.int8)
                wide = x.double()
                if isinstance(rule, NormedLinear):
                    wide = wide / (wide.square().mean(-1, keepdim=True) + rule.eps).sqrt()
                    wide = wide * source.dense(f"{prefix}{part.name}.norm.weight").double()
                outputs.append(wide @ (codes.double() * packed.scale.double()).T)
            helpers.assert_near(getattr(block, name)(x), torch.cat(outputs, -1), 1e-6)
            layers += 1
    assert layers == 4 * config.num_layers
    options = LoadOptions(dtype=torch.float32)
    with torch.inference_mode():
        expected = LanguageModel.from_checkpoint(source, options, tokenizer=False)(ids)
        for to in targets:
            save(source, folder / to, to=to)
            with open_checkpoint(folder / to) as found:
                assert_same(source, found)
                again = LanguageModel.from_checkpoint(found, options, tokenizer=False)(ids)
            assert helpers.relative_l2(again, expected) < 1e-4, to


def written_by_gguf_py(net: Any, architecture: str, folder: Path, extra: dict[str, Any] | None = None) -> Path:
    """The model as a GGUF file that gguf-py wrote."""
    net.save_pretrained(folder / "hf")
    with open_checkpoint(folder / "hf") as source:
        values = {name: source.dense(name).numpy() for name in source.names}
        write(folder / "x.gguf", architecture, source.config, "F32", values, extra or {}, without=NO_TOKENS)
    return folder / "x.gguf"
