"""Fashion-MNIST, MLP 784-256-128-10, all three layers ternary. Data: fashion-mnist (see data.py)."""

from data import fashion
from recipe import Recipe
from task import Task, mlp

TASK = Task(
    name="fashion_mlp",
    title="Fashion-MNIST MLP 784-256-128-10",
    build=mlp,
    recipe=Recipe(epochs=10, batch=128, lr=3e-3, lr_fp32=3e-3, norm="batch"),
    read=fashion,
)
