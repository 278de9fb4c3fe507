"""What two processes check of whole models; `test_models.py` starts it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from transformers.distributed import DistributedConfig

import bittorch
import bittorch.hf
from bittorch.distributed import DecoderStage, tensor_parallel_
from bittorch.models import LanguageModel, ModelConfig
from tests import helpers, two_processes
from tests.hf import tiny as tiny_hf
from tests.models import tiny

# Logits with floating activations, after two layers whose sums are rounded otherwise.
FLOAT = 5e-6
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))


def cut(config: ModelConfig = tiny.CONFIG, **options: object) -> tuple[LanguageModel, LanguageModel]:
    """A model, and the same in parts."""
    whole, parts = tiny.model(config, **options), tiny.model(config, **options)
    assert tensor_parallel_(parts, mesh()) is parts
    return whole, parts


EXACT = {
    "bitnet, whose norms see whole rows": {},
    "norms that are not fused": {"fuse_norms": False},
    "llama": {"architecture": "llama", "hidden_act": "silu", "activation_bits": 16},
    "qwen3, a norm of each head": {"architecture": "qwen3", "hidden_act": "silu"},
    "biases": {"architecture": "llama", "hidden_act": "silu", "biases": ("q_proj", "o_proj", "down_proj")},
    "a norm of each input": {"architecture": "qwen3", "hidden_act": "silu", "input_norm_eps": 1e-6},
}


@check
def logits_have_the_bits_of_one_process() -> None:
    ids = torch.tensor(tiny.prompts(7, 7))
    for name, values in EXACT.items():
        whole, parts = cut(tiny.changed(**values))
        assert torch.equal(parts(ids), whole(ids)), name


@check
def floats_are_near_one_process() -> None:
    ids = torch.tensor(tiny.prompts(7))
    whole, parts = cut(tiny.changed(activation_bits=None))
    assert 0 < helpers.relative_l2(parts(ids), whole(ids)) <= FLOAT


@check
def generation_has_the_tokens_of_one_process() -> None:
    whole, parts = cut()
    cache = parts.new_cache(2, 16)
    assert cache.nbytes * 2 == whole.new_cache(2, 16).nbytes
    for prompts in (tiny.prompts(5), tiny.prompts(3, 9)):
        assert parts.generate(prompts, max_new_tokens=8) == whole.generate(prompts, max_new_tokens=8)


@check
def a_part_is_not_saved() -> None:
    parts = cut()[1]
    with pytest.raises(RuntimeError, match="save it before tensor_parallel_"):
        parts.save_pretrained("anywhere")
    with pytest.raises(RuntimeError, match="save the model before it is made parallel"):
        parts.state_dict()
    with pytest.raises(ValueError, match="the LanguageModel is parallel already"):
        tensor_parallel_(parts, mesh())


@check
def models_that_cannot_be_cut_stay_as_they_are() -> None:
    ids = torch.tensor(tiny.prompts(4))
    experts = {"num_experts": 4, "experts_per_token": 2, "expert_size": 32}
    cases = [
        (tiny.model(tiny.changed(num_kv_heads=1)), ValueError, "num_kv_heads=1 is no multiple of 2 processes"),
        (
            tiny.model(tiny.changed(intermediate_size=100)),
            ValueError,
            "in_features=100 is no multiple of 2 processes x 4",
        ),
        (tiny.model(ternary=False), NotImplementedError, "layers.0.self_attn.qkv_proj is a Linear"),
        (
            tiny.model(tiny.changed(architecture="qwen3_moe", hidden_act="silu", **experts)),
            NotImplementedError,
            "layers.0.mlp is a SparseMLP",
        ),
    ]
    for model, error, message in cases:
        before = model(ids)
        with pytest.raises(error, match=message):
            tensor_parallel_(model, mesh())
        assert torch.equal(model(ids), before)
    with pytest.raises(TypeError, match="takes a LanguageModel or a model of transformers, got Sequential"):
        tensor_parallel_(nn.Sequential(), mesh())


def ternary(dense: nn.Module) -> nn.Module:
    bittorch.quantize_(dense, bittorch.TernaryQuantConfig(activation_bits=8), skip="lm_head")
    return dense


@check
def a_model_of_transformers_has_the_bits_of_one_process() -> None:
    for dense in (tiny_hf.llama(), tiny_hf.qwen2()):
        whole = bittorch.export_for_inference(ternary(dense))
        parts = tensor_parallel_(copy.deepcopy(whole), mesh())
        assert torch.equal(tiny_hf.logits(parts), tiny_hf.logits(whole))
    with pytest.raises(ValueError, match="parallel already"):
        tensor_parallel_(parts, mesh())


@check
def a_model_of_transformers_trains_as_in_one_process() -> None:
    whole, parts = ternary(tiny_hf.llama()), tensor_parallel_(ternary(tiny_hf.llama()), mesh())
    for model in (whole, parts):
        model(tiny_hf.IDS, labels=tiny_hf.IDS).loss.backward()
    for (name, found), (_, wanted) in zip(parts.named_parameters(), whole.named_parameters(), strict=True):
        grad = found.grad.full_tensor() if hasattr(found.grad, "full_tensor") else found.grad
        assert helpers.relative_l2(grad, wanted.grad) <= 1e-5, name


@check
def norms_of_heads_do_not_train() -> None:
    model = ternary(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**tiny_hf.SIZES, head_dim=16)))
    with pytest.raises(
        NotImplementedError, match="q_norm, a Qwen3RMSNorm, has the style 'replicated_with_grad_allreduce"
    ):
        tensor_parallel_(model, mesh())
    whole = bittorch.export_for_inference(model.eval())
    parts = tensor_parallel_(copy.deepcopy(whole), mesh())
    assert torch.equal(tiny_hf.logits(parts), tiny_hf.logits(whole))


@check
def a_pipeline_of_stages_has_the_bits_of_the_model() -> None:
    model, ids = tiny.model(tiny.changed(num_layers=3)), torch.tensor(tiny.prompts(7, 7, 7, 7))
    expected = model(ids)
    stage = PipelineStage(DecoderStage(model, dist.get_rank(), 2), dist.get_rank(), 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, 2)
    with torch.no_grad():
        logits = schedule.step(ids) if dist.get_rank() == 0 else schedule.step()
    assert dist.get_rank() == 0 or torch.equal(logits, expected)
    assert torch.equal(model(ids), expected)
    with pytest.raises(ValueError, match="there is no stage 3 of 4 for 3 layers"):
        DecoderStage(model, 3, 4)
    with pytest.raises(TypeError, match="of a LanguageModel, got Linear"):
        DecoderStage(nn.Linear(2, 2), 0, 1)


@check
def transformers_does_not_load_parts() -> None:
    folder = Path(sys.argv[3]) / "llama"
    tiny_hf.saved(tiny_hf.llama(), folder)  # the first process writes
    dist.barrier()
    with pytest.raises(NotImplementedError, match=r"got tp_size=2; load the model whole .*tensor_parallel_"):
        transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=bittorch.hf.TernaryConfig(), distributed_config=DistributedConfig(tp_size=2)
        )


if __name__ == "__main__":
    two_processes.run(CHECKS)
