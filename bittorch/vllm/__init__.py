"""bittorch in vLLM, which finds it by the entry point ``vllm.general_plugins`` in every process that it starts.

>>> from vllm import LLM
>>> llm = LLM("packed")  # a folder of `LanguageModel.save_pretrained`, or of transformers with `bittorch.hf`

The folder's config.json says ``"quant_method": "bittorch"``, so no option is needed. Packed weights stay packed, and
scales float32. On a CPU, checkpoints of compressed-tensors with 2 bits run too, and BitNet's model class is known.

vLLM is no extra of this package: its releases ask for one torch each, and on a CPU for a build of its own.
"""

from __future__ import annotations

import re
import warnings

OLDEST, TESTED = (0, 32), (0, 32)
"""Versions of vLLM: the oldest that has what is used here, and the one that the tests ran with."""

BITNET = "BitNetForCausalLM"


def register() -> None:
    """Makes ``bittorch`` known to vLLM; vLLM calls it, and a second call changes nothing.

    A vLLM that bittorch does not fit is warned of, since it can still serve models of other packages.

    Raises:
        ImportError: there is no vLLM.
    """
    try:
        import vllm
    except ImportError as error:
        raise ImportError(
            f"bittorch.vllm needs vLLM>={_text(OLDEST)}, in an environment with the torch that it asks for ({error})"
        ) from None
    found = version(vllm.__version__)
    if found is not None and found < OLDEST:
        warnings.warn(_unfit(vllm.__version__, "it is older"), stacklevel=2)
        return
    try:
        from vllm import ModelRegistry

        from bittorch.vllm import compressed, config  # noqa: F401  each registers what it has, once
    except (ImportError, AttributeError, TypeError) as error:
        warnings.warn(_unfit(vllm.__version__, str(error)), stacklevel=2)
        return
    if BITNET not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(BITNET, f"{__name__}.bitnet:{BITNET}")  # imported where a model needs it
    if found is not None and found > TESTED:
        warnings.warn(
            f"bittorch was tested with vLLM {_text(TESTED)}, and this is {vllm.__version__}: compare some answers with "
            "those of bittorch.models.LanguageModel",
            stacklevel=2,
        )


def version(text: str) -> tuple[int, int] | None:
    """The first two numbers; None for builds between releases, which have none that mean anything."""
    match = re.match(r"(\d+)\.(\d+)\.\d+(?!.*dev)", text)
    return None if match is None else (int(match[1]), int(match[2]))


def _unfit(found: str, why: str) -> str:
    return (
        f"bittorch is made for vLLM {_text(OLDEST)} and does not fit vLLM {found} ({why}): this vLLM cannot serve "
        "models packed by bittorch"
    )


def _text(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))
