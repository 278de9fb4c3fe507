"""Codes and their bytes in plain torch: packing, decoding, checking, other layouts."""

import torch
from torch import Tensor

from bittorch.ops.block_types import DECODERS, WEIGHTS


def over_columns(scale: Tensor, in_features: int) -> Tensor:
    """The scale of every element, broadcastable to (out_features, in_features)."""
    if scale.dim() == 1:
        return scale[:, None]
    return scale.repeat_interleave(in_features // scale.shape[1], dim=1)


def ternary_pack(codes: Tensor) -> Tensor:
    return _pack_raw((codes == 1).to(torch.uint8) + 2 * (codes == -1).to(torch.uint8))


def _pack_raw(raw: Tensor) -> Tensor:
    n, k = raw.shape
    quads = torch.nn.functional.pad(raw, (0, -k % 4)).view(n, (k + 3) // 4, 4)
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def _raw_codes(w_packed: Tensor) -> Tensor:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=w_packed.device)
    return (w_packed[:, :, None] >> shifts & 3).flatten(1)


def ternary_unpack(w_packed: Tensor, scale: Tensor | None, in_features: int, dtype: torch.dtype) -> Tensor:
    raw = _raw_codes(w_packed)[:, :in_features].to(torch.int8)
    codes = (raw & 1) - (raw >> 1)
    return codes.to(dtype) if scale is None else (codes * over_columns(scale, in_features)).to(dtype)


def ternary_embedding(
    indices: Tensor, w_packed: Tensor, scale: Tensor, in_features: int, dtype: torch.dtype, depth: int = 1
) -> Tensor:
    n = len(w_packed) // depth
    rows = indices.flatten() + n * torch.arange(depth, device=indices.device)[:, None]
    scales = scale if len(scale) == 1 != len(w_packed) else scale[rows.flatten()]
    planes = ternary_unpack(w_packed[rows.flatten()], scales, in_features, torch.float32)
    wide = planes.double().view(depth, *indices.shape, in_features)
    return sum(wide[1:], wide[0]).float().to(dtype)


def block_unpack(blocks: Tensor, kind: str, columns: int, dtype: torch.dtype) -> Tensor:
    if not blocks.numel():
        return torch.zeros(len(blocks), columns, dtype=dtype, device=blocks.device)
    count = len(blocks) * columns // WEIGHTS[kind]
    values = DECODERS[kind](blocks.numpy(force=True).reshape(count, -1))
    return torch.from_numpy(values).to(blocks.device, dtype).reshape(len(blocks), columns)


def ternary_transpose(w_packed: Tensor, in_features: int) -> Tensor:
    return _pack_raw(_raw_codes(w_packed)[:, :in_features].t())


def ternary_from_base3(data: Tensor, in_features: int, layout: str = "rows") -> Tensor:
    if layout == "rows":
        raw = _base3_digits(data.long(), data > 242).flatten(1)
    else:
        parts = {"tq1_0": (32, 16, 4), "ptq1_0": (16, 8, 2)}[layout]
        size = sum(parts) + 2
        blocks = data.reshape(data.numel() // size, size)[:, :-2].long()
        value = blocks * 243 // 256
        digits = _base3_digits(value, (value * 256 + 242) // 243 != blocks).flip(2)
        first, second, last = (part.transpose(1, 2).flatten(1) for part in digits.split(parts, 1))
        raw = torch.cat([first, second, last[:, : 4 * parts[2]]], 1).view(len(data), in_features)
    return _pack_raw(raw)[:, : (in_features + 3) // 4].contiguous()


def ternary_from_fields(data: Tensor, in_features: int, layout: str, w_packed: Tensor) -> Tensor:
    if not data.numel():
        return torch.zeros(len(data), dtype=torch.bool, device=data.device)
    shifts = torch.tensor([0, 2, 4, 6] if layout in ("bitnet", "tq2_0") else [6, 4, 2, 0], device=data.device)
    run = {"i2_s_128x32": 32, "i2_s_64x16": 16, "tq2_0": 32}.get(layout, in_features)
    blocks = data.unflatten(1, (-1, 66))[:, :, :64] if layout == "tq2_0" else data
    # (rows of data, runs, parts, weights of a part)
    fields = blocks.reshape(len(data), -1, 1, run) >> shifts[:, None] & 3
    raw = (fields + 2) % 3
    raw[fields == 3] = 3
    if layout == "bitnet":
        raw = raw.permute(2, 0, 1, 3)
    w_packed.copy_(_pack_raw(raw.reshape(len(w_packed), in_features)))
    return (fields == 3).flatten(1).any(1)


def _base3_digits(value: Tensor, damaged: Tensor) -> Tensor:
    """The five digits of each value as raw codes, the lowest first; 11 where it is damaged."""
    digits = value[..., None] // 3 ** torch.arange(5, device=value.device) % 3
    return torch.where(damaged[..., None], 3, (digits + 2) % 3).to(torch.uint8)


def ternary_check(w_packed: Tensor, in_features: int) -> Tensor:
    raw = _raw_codes(w_packed)
    if raw.shape[1] == 0:
        return torch.full((len(raw),), -1, device=raw.device)
    columns = torch.arange(raw.shape[1], device=raw.device)
    bad = (raw == 3) | ((columns >= in_features) & (raw != 0))
    return torch.where(bad, columns, raw.shape[1]).amin(1).where(bad.any(1), -1)
