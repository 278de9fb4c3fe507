"""The Trainer of transformers on a ternary language model, from the optimiser to the folders that it saves."""

from pathlib import Path

import pytest
import torch

from bittorch import TernaryQuantConfig, quantize_
from bittorch.models import LanguageModel
from bittorch.train import parameter_groups
from tests import helpers

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


# FIELD N3, FIELD T4
@pytest.mark.slow
def test_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2, max_position_embeddings=16)
    ids = torch.randint(0, 40, (8, 12), generator=helpers.seeded(1))
    data = [{"input_ids": row, "labels": row} for row in ids]

    def trainer(steps: int) -> object:
        model = transformers.LlamaForCausalLM(config.__class__(**config.to_dict()))
        quantize_(model, TernaryQuantConfig(method="lsq", group_size=16), skip="lm_head")
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            lr_scheduler_type="constant",
        )
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2)
        return transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))

    whole = trainer(4)
    whole.train()
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, parameter in whole.model.named_parameters():
        helpers.assert_same_bits(resumed.model.get_parameter(name).detach(), parameter.detach())
    model = whole.model.eval()
    opened = LanguageModel.from_pretrained(tmp_path / "checkpoint-4", tokenizer=False)
    with torch.inference_mode():
        helpers.assert_same_bits(opened(ids), model(ids).logits)
