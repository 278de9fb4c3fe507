"""Packed models to ONNX files."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

import bittorch
from bittorch.nn import PackedLayer
from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.onnx import placeholders
from bittorch.onnx.errors import innermost
from bittorch.onnx.lowering import Form, lower
from bittorch.onnx.report import Check, OnnxReport
from bittorch.onnx.verify import check, session
from bittorch.onnx.weights import BLOCKS
from bittorch.quant.ternary import no_trits
from bittorch.utils.wrappers import unwrapped

FORMATS = ("matmulnbits", "qdq", "exact")
OPSETS = range(18, 26)
_DATA_FROM = 1 << 30  # bytes of tensors from which they get a file of their own: protobuf ends at 2 GiB


def _check_form(form: Form) -> None:
    for name in ("opset", "block_size", "accuracy_level"):
        value = getattr(form, name)
        if type(value) is not int and not (name == "block_size" and value is None):
            raise TypeError(f"{name} must be an integer, got {value!r}")
    if form.format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form.format!r}")
    if form.opset not in OPSETS:
        raise ValueError(f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {form.opset!r}")
    if form.block_size is not None and (form.format != "matmulnbits" or form.block_size not in BLOCKS):
        raise ValueError(
            f'block_size goes with format="matmulnbits" and is one of {", ".join(map(str, BLOCKS))}; got '
            f"{form.block_size!r} and {form.format!r}"
        )
    if form.accuracy_level not in range(5) or (form.format == "exact" and form.accuracy_level):
        raise ValueError(
            f'accuracy_level must be from 0 to 4, and 0 with format="exact", got {form.accuracy_level!r} and '
            f"{form.format!r}"
        )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, TernaryLayer):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}; pass what export_for_inference returns"
            )
        if module.training:
            raise ValueError(f"{name or 'the model'} is in training mode; call model.eval()")
    if not any(isinstance(module, PackedLayer) for module in model.modules()):
        raise ValueError("the model has no packed layer; pass what export_for_inference or quantize_model returns")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} is on {tensor.device}; move the model to the CPU, where the file is checked")


def _check_args(args: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not isinstance(args, Tensor | Sequence):
        raise TypeError(f"args must be a tensor or a sequence of them, got {type(args).__name__}")
    given = (args,) if isinstance(args, Tensor) else tuple(args)
    for i, arg in enumerate(given):
        what = f"{arg.dtype} and {arg.layout} on {arg.device}" if isinstance(arg, Tensor) else type(arg).__name__
        if not isinstance(arg, Tensor) or arg.device.type != "cpu" or not _in_numpy(arg):
            raise TypeError(f"argument {i} must be a dense CPU tensor of a type that NumPy has, got {what}")
        if arg.dim() and arg.shape[0] == 0:
            raise ValueError(f"argument {i} is {tuple(arg.shape)}; the file is checked with it, so it needs samples")
    return tuple(arg.detach() for arg in given)


def _in_numpy(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.dtype != torch.bfloat16


def _check_rest(target: Path, tolerance: float, **names: Sequence[str] | None) -> None:
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"{target} is a folder, or its folder does not exist")
    if target.exists() and not target.is_file():
        raise ValueError(f"{target} is no ordinary file, and would be replaced by one; name another")
    if not isinstance(tolerance, int | float):
        raise TypeError(f"tolerance must be a number from 0 on, got {tolerance!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be a number from 0 on, got {tolerance!r}")
    for name, value in names.items():
        whole = isinstance(value, Sequence) and not isinstance(value, str)
        if value is not None and not (whole and all(isinstance(each, str) for each in value)):
            raise TypeError(f"{name} must be a sequence of names, got {value!r}")


def _larger(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Twice the samples; the second half is backwards, and eight times smaller where it is floating."""
    return tuple(
        torch.cat([arg, arg.flip(0) * 0.125 if arg.is_floating_point() else arg.flip(0)]) if arg.dim() else arg
        for arg in args
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx tells of packages that it would use, and of its own deprecated calls."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        logger.setLevel(level)


def _program(model: nn.Module, args: tuple[Tensor, ...], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    try:
        program = torch.export.export(model, args, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # whatever the forward does with tensors without values
        raise ValueError(
            f"torch.export cannot trace {type(model).__name__}: {error}; if it cannot leave the batch open, take "
            "dynamic_batch=False"
        ) from error
    known = set(placeholders.names())
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", "") == "bittorch" and node.target._opname not in known:
            stack = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
            where = (stack[-1] if stack else "") or "the model"
            raise ValueError(
                f"{where} calls bittorch::{node.target._opname}, which has no form in ONNX; those that have one are "
                f"{', '.join(sorted(known))}"
            )
    return program


def _graph(program: torch.export.ExportedProgram, opset: int, **names: Any) -> ir.Model:
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            custom_translation_table=placeholders.table(),
            verbose=False,
            **names,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"torch.onnx cannot write the model: {innermost(error)}") from error
    assert made is not None
    model: ir.Model = made.model
    if model.opset_imports[""] != opset:
        raise ValueError(
            f"torch.onnx wrote opset {model.opset_imports['']} in place of opset={opset}: an operator of the model has "
            "no other form"
        )
    for (name, wanted), values in zip(names.items(), (model.graph.inputs, model.graph.outputs), strict=True):
        if wanted is not None and len(wanted) != len(values):
            raise ValueError(f"{name} has {len(wanted)} names, but the graph has {len(values)}")
    return model


def _save(model: ir.Model, path: Path) -> list[Path]:
    """Writes the file, and one for its tensors if they are too large for it; the first is the file."""
    total = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    data = f"{path.name}.data" if total >= _DATA_FROM else None
    ir.save(model, path, external_data=data)
    return [path, path.with_name(data)] if data else [path]


def _data_beside(path: Path) -> Path | None:
    """The file of tensors that the ONNX file there keeps beside it by our name; None where a file of that name is not
    of it."""
    data = path.with_name(f"{path.name}.data")
    if not path.is_file() or not data.is_file():
        return None
    try:
        values = [value.const_value for value in ir.load(path).graph.initializers.values()]
    except Exception:  # whatever is no ONNX file
        return None
    return data if any(isinstance(v, ir.ExternalTensor) and str(v.location) == data.name for v in values) else None


def export(
    model: nn.Module,
    args: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    format: str = "matmulnbits",
    *,
    opset: int = 25,
    block_size: int | None = None,
    accuracy_level: int = 0,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    tolerance: float = 1e-2,
) -> OnnxReport:
    """Writes a packed model as ONNX, runs the file in onnxruntime beside the model, and then puts it in its place.

    torch.onnx makes the graph around the packed layers. These hold trits of 2 bits in the file:

    - ``matmulnbits``: ``MatMulNBits`` of onnxruntime;
    - ``qdq``: INT2, ``DequantizeLinear`` and ``MatMul``, operators of ONNX that onnxruntime fuses to ``MatMulNBits``;
    - ``exact``: for layers with ``activation_bits``, and no others. ``MatMulInteger`` with the arithmetic of
      `bittorch.ops.ternary_linear_w2a8`: each layer gives the bits of the packed one.

    The first two round activations of layers with ``activation_bits`` to their grid, and multiply floats. Convolutions
    are INT2, ``DequantizeLinear`` and ``Conv``, or exactly ``ConvInteger``. Embeddings gather packed rows, exactly in
    each format. Trit planes are products whose rows are added, and in ``exact`` integers of 4 or 8 bits.

    Args:
        model: packed, in eval mode, on the CPU.
        args: one tensor, or several, for ``model(*args)``; the file is checked with them.
        path: of the file, or a link to it; tensors of 1 GiB and more stand beside it, in ``<path>.data``,
            and a file of that name that the replaced file used goes with it.
        format: as above.
        opset: 18 to 25. INT2, which all but linear layers of ``matmulnbits`` and embeddings are stored in, needs 25.
        block_size: columns of a scale in MatMulNBits, one of 16, 32, 64, 128, 256. Default: the largest up to 128 that
            fits.
        accuracy_level: 0 multiplies floats; 4 rounds activations to 8 bits in blocks, much faster and about 1e-2 off.
            ``qdq`` does not store it: give a session ``session.qdq_matmulnbits_accuracy_level``, whose default is 4.
        dynamic_batch: leaves the first dimension of every input open, and checks the file with twice the samples too.
        dynamic_shapes: as in `torch.export.export`, in place of ``dynamic_batch``; checked with ``args`` alone.
        input_names, output_names: of the graph. Default: torch's.
        tolerance: the relative L2 error that is still written.

    Returns:
        How each layer is stored, and for each check whether outputs were equal, or their error.

    Raises:
        TypeError: what is no module, arguments that are no dense CPU tensors, options of other types.
        ValueError: an unknown format, opset or block; a model in training mode, without packed layers or with layers
            that are not packed; what torch.export, torch.onnx, the format or onnxruntime does not take, by name; args
            for which no output is finite, since they would check nothing; a file that is further off than
            ``tolerance``. Nothing is then written, and a file that was there stays.

    >>> packed = bittorch.export_for_inference(model)
    >>> print(bittorch.onnx.export(packed, x, "model.onnx", format="exact"))
    """
    form = Form(format, opset, block_size, accuracy_level)
    _check_form(form)
    _check_model(model)
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLayer):
            no_trits(layer.activation_bits, f"an ONNX file, for {name or 'the model'},")
    model = unwrapped(model)  # whose names are those of the layers
    given, target = _check_args(args), Path(os.path.realpath(path))  # what a link leads to is replaced
    _check_rest(target, tolerance, input_names=input_names, output_names=output_names)
    batches = [given]
    if dynamic_shapes is None and dynamic_batch:
        batches.append(_larger(given))
        dynamic_shapes = torch.export.ShapesCollection()
        for arg in batches[-1]:
            if arg.dim():
                dynamic_shapes[arg] = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), _quiet():  # with gradients, planes meet their activations one by one
        program = _program(model, batches[-1], dynamic_shapes)
        graph = _graph(program, opset, input_names=input_names, output_names=output_names)
    how = lower(graph, form)
    graph.producer_name, graph.producer_version = "bittorch", bittorch.__version__
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        files = _save(graph, Path(folder) / target.name)
        checks = _checked(files[0], model, batches, form, tolerance)
        nbytes = sum(file.stat().st_size for file in files)
        stale = None if len(files) > 1 else _data_beside(target)
        for file in reversed(files):
            os.replace(file, target.with_name(file.name))
        if stale is not None:
            stale.unlink(missing_ok=True)
    return OnnxReport(Path(path), format, opset, how, checks, nbytes)


def _checked(
    path: Path, model: nn.Module, batches: Sequence[tuple[Tensor, ...]], form: Form, tolerance: float
) -> tuple[Check, ...]:
    run = session(path, form.accuracy_level)
    checks = tuple(check(run, model, args) for args in batches)
    for found in checks:
        if not found.error <= tolerance:
            raise ValueError(
                f"onnxruntime is off by {found.error:.1e} at batch {found.batch}, and tolerance={tolerance:g}; nothing "
                f"was written. accuracy_level={form.accuracy_level} of {form.format!r} may need a larger tolerance"
            )
    return checks
