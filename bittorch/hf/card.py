"""The model card of a packed model, and its way to the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from torch import nn
from transformers import PreTrainedModel

from bittorch.nn import PackedLayer

_TEXT = """---
{data}
---

# {title}

{of_base} with ternary weights of [bittorch](https://pypi.org/project/bittorch/): {layers} packed layers hold
{weights:,} weights in {bits:.2f} bits each, scales included{depth}.

## How to load it

```
pip install 'bittorch[hf]'
```

```python
import bittorch.hf  # before from_pretrained
from transformers import {auto}

model = {auto}.from_pretrained("{repo}")
```

Without `import bittorch.hf` transformers warns of an unknown quantization type, and gives the layers random weights.
"""


def _bits(layers: list[PackedLayer]) -> tuple[int, float]:
    """Weights, and the bits that one of them takes."""
    weights = sum(len(layer.weight_packed) // layer.depth * layer.columns for layer in layers)
    stored = sum(8 * layer.weight_packed.nbytes + 8 * layer.scale.nbytes for layer in layers)
    return weights, stored / max(weights, 1)


def model_card(model: nn.Module, repo_id: str, base_model: str | None = None) -> ModelCard:
    """The README.md of a packed model: what it is of, its bits, and how to load it.

    Args:
        model: of transformers, with packed layers.
        repo_id: its name on the hub, or a folder.
        base_model: the model that it was made of; None is what the configuration says, where that is no folder.

    Raises:
        ValueError: the model has no packed layer.
    """
    layers = [module for module in model.modules() if isinstance(module, PackedLayer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer; call bittorch.export_for_inference(model) first")
    base = base_model or _base_of(model)
    weights, bits = _bits(layers)
    depths = sorted({layer.depth for layer in layers})
    data = ModelCardData(
        library_name="transformers", tags=["bittorch", "ternary"], base_model=base, base_model_relation="quantized"
    )
    if base is None:
        data.base_model_relation = None
    return ModelCard(
        _TEXT.format(
            data=data.to_yaml(),
            title=repo_id.rpartition("/")[2],
            of_base=f"[{base}](https://huggingface.co/{base})" if base else f"A {type(model).__name__}",
            layers=len(layers),
            weights=weights,
            bits=bits,
            depth="" if depths == [1] else f", as sums of {' or '.join(map(str, depths))} planes of trits",
            auto="AutoModelForCausalLM" if type(model).__name__.endswith("ForCausalLM") else type(model).__name__,
            repo=repo_id,
        )
    )


def _base_of(model: nn.Module) -> str | None:
    name = str(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    return None if not name or name.startswith((".", "/", "~")) or Path(name).exists() else name


def push_to_hub(
    model: PreTrainedModel, repo_id: str, *, base_model: str | None = None, tokenizer: Any = None, **options: Any
) -> str:
    """Writes a packed model, its card and its tokenizer, and uploads them in one commit.

    Everything is written and the card made before the hub is asked for anything; the commit is one, so an error on the
    way leaves the repository as it was.

    Args:
        model: of transformers, with packed layers.
        repo_id: the repository, made where there is none.
        base_model: see `model_card`.
        tokenizer: of transformers; None uploads none.
        **options: ``private`` and ``token`` of the repository; ``commit_message``, ``revision`` and ``create_pr``.

    Returns:
        The address of the commit.

    Raises:
        TypeError: an option of another name.
        ValueError: as `model_card`. Errors of the hub as they are.
    """
    if unknown := sorted(options.keys() - {"private", "token", "commit_message", "revision", "create_pr"}):
        raise TypeError(f"push_to_hub has no option {', '.join(unknown)}")
    private, token = options.pop("private", None), options.pop("token", None)
    card = model_card(model, repo_id, base_model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        card.save(Path(folder) / "README.md")
        api = HfApi(token=token)
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        message = options.pop("commit_message", None) or f"Upload {type(model).__name__} in ternary"
        done = api.upload_folder(
            folder_path=folder, repo_id=created.repo_id, commit_message=message, token=token, **options
        )
    return str(done)
