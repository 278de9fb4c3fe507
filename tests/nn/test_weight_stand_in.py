"""Models of transformers that read the dtype of a layer's weight."""

import pytest
import torch

import bittorch

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:only .* of the weights")]


def test_vit_reads_the_dtype_of_its_patches() -> None:  # FIELD N9
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=4, **sizes)).eval()
    report = bittorch.quantize_(model)
    assert "embeddings.patch_embeddings.projection" in report.converted
    packed, images = bittorch.export_for_inference(model), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        assert torch.equal(packed(images).last_hidden_state, expected)
        torch._dynamo.reset()
        compiled = torch.compile(packed, fullgraph=True, backend="eager")
        assert torch.equal(compiled(images).last_hidden_state, expected)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16 with float32 wo"])
def test_t5_reads_the_dtype_of_wo(half: bool) -> None:  # FIELD N9
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(decoder_start_token_id=0, **sizes)).eval()
    bittorch.quantize_(model, skip="lm_head")
    if half:  # as transformers loads it: the last layer of each block stays in float32, and casts what comes
        model.bfloat16()
        for name, module in model.named_modules():
            if name.endswith("wo"):
                module.float()
    packed, tokens = bittorch.export_for_inference(model), torch.randint(0, 50, (2, 7))
    with torch.no_grad():
        expected = model(input_ids=tokens, decoder_input_ids=tokens).logits
        assert torch.equal(packed(input_ids=tokens, decoder_input_ids=tokens).logits, expected)
