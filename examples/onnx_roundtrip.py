"""A packed classifier as three ONNX files, run in onnxruntime, and read back into packed layers.

A small convolution and two linear layers learn to tell stripes by their direction. The packed net with int8
activations gives the same bits in onnxruntime; with floating activations it gives the same numbers but for the order of
sums; and the 2-bit products of a file become packed layers again.

Run: python examples/onnx_roundtrip.py                  (well under a minute; nothing is downloaded)
Needs the extra onnx.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import bittorch
import bittorch.onnx


def stripes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of 12 x 12 with waves along one of four directions, and noise."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (count,), generator=generator)
    angle = label * (torch.pi / 4)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    phase = torch.rand(count, 1, 1, generator=generator) * 6.28
    wave = torch.sin(angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y + phase)
    return (wave + torch.randn(count, 12, 12, generator=generator) / 2)[:, None], label


def trained(activation_bits: int | None, steps: int) -> nn.Module:
    torch.manual_seed(0)
    config = bittorch.TernaryQuantConfig(activation_bits=activation_bits)
    net = nn.Sequential(
        bittorch.TernaryConv2d(1, 16, 5, stride=2, config=config),
        nn.ReLU(),
        nn.Flatten(),
        bittorch.TernaryLinear(256, 64, config=config),
        nn.ReLU(),
        bittorch.TernaryLinear(64, 4, config=config),
    )
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        x, label = stripes(128, step + 1)
        loss = nn.functional.cross_entropy(net(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bittorch.export_for_inference(net.eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="training steps of each of the two nets")
    args = parser.parse_args()
    x, label = stripes(512, 0)
    with tempfile.TemporaryDirectory() as folder:
        for format, bits in (("exact", 8), ("matmulnbits", None), ("qdq", None)):
            net = trained(bits, args.steps)
            accuracy = float((net(x).argmax(1) == label).float().mean())
            report = bittorch.onnx.export(net, x[:3], Path(folder) / f"{format}.onnx", format)
            print(f"{format}: accuracy {accuracy:.1%}, {report.nbytes:,} bytes")
            for name, how in report.layers.items():
                print(f"  {name}: {how}")
            print(f"  onnxruntime: {'equal bit for bit' if report.equal else f'relative error {report.error:.1e}'}")
            if format == "matmulnbits":
                layers = bittorch.onnx.load_matmulnbits(report.path)
                same = all(
                    torch.equal(layer.weight_packed, net[int(name)].weight_packed) for name, layer in layers.items()
                )
                print(f"  read back: {len(layers)} packed layers, codes {'equal' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
