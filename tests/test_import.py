import torch

import bittorch
from tests import helpers

HEAVY = (
    "hypothesis", "matplotlib", "mlxtend", "onnx", "onnxruntime", "pandas", "pytest", "scipy", "sklearn", "torchvision",
    "transformers", "triton", "tqdm",
)  # fmt: skip


def test_import_prints_nothing_and_leaves_extras_cuda_and_torch_alone() -> None:
    code = f"""
import warnings; warnings.simplefilter("error")
import sys, torch
before = (torch.get_num_threads(), torch.get_default_dtype(), torch.random.get_rng_state())
modules = set(sys.modules)
import bittorch
assert not {{name.split(".")[0] for name in set(sys.modules) - modules}} & set({HEAVY!r})
assert not torch.cuda.is_initialized()
assert before[:2] == (torch.get_num_threads(), torch.get_default_dtype())
assert torch.equal(before[2], torch.random.get_rng_state())
"""
    result = helpers.run_python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_public_names_exist() -> None:
    for module in (bittorch, bittorch.nn, bittorch.ops, bittorch.quant, bittorch.utils):
        assert len(set(module.__all__)) == len(module.__all__) > 0
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_star_import_takes_the_place_of_no_module() -> None:
    space = {"nn": torch.nn}
    exec("from bittorch import *", space)
    assert space["nn"] is torch.nn
    assert space["TernaryLinear"] is bittorch.TernaryLinear
    assert not {"ops", "quant", "train", "utils"} & space.keys()
