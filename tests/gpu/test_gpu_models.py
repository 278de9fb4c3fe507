"""A small random language model on a CUDA device: logits near the CPU's, generation on the device."""

import pytest
import torch

from bittorch.models import Generation, GenerationConfig
from tests import helpers
from tests.models import tiny

DEVICE = "cuda"
# float32 sums in another order; with 8 bits these move activations across a rounding, a step of 1/127 of the largest.
BITS = {None: 1e-3, 8: 3e-2}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("ternary", [True, False])
def test_logits_come_near_the_cpu(ternary: bool, bits: int | None) -> None:
    options = {"activation_bits": bits, "dtype": torch.float32}
    on_cpu = tiny.model(ternary=ternary, **options)
    on_gpu = tiny.model(ternary=ternary, device=torch.device(DEVICE), **options)
    assert {t.device.type for t in (*on_gpu.parameters(), *on_gpu.buffers())} == {DEVICE}
    tokens = torch.tensor(tiny.prompts(17, 17))
    with torch.inference_mode():
        expected, y = on_cpu(tokens), on_gpu(tokens.to(DEVICE))
    helpers.assert_near(y.cpu(), expected, BITS[bits])


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_follow_the_logits_and_seeds_reproduce(dtype: torch.dtype, temperature: float) -> None:
    model = tiny.model(device=torch.device(DEVICE), dtype=dtype)
    config = GenerationConfig(
        max_new_tokens=12, temperature=temperature, top_k=40, repetition_penalty=1.2, seed=3, ignore_eos=True
    )
    prompts = tiny.prompts(5, 17, 1)
    answers = Generation(model, prompts, config).run().tokens
    assert [len(answer) for answer in answers] == [12, 12, 12]
    assert Generation(model, prompts, config).run().tokens == answers
