"""Fashion-MNIST, CNN 32C3-MP2-64C3-MP2-256-10, all four layers ternary. Data: fashion-mnist (see data.py)."""

import functools

from data import fashion
from recipe import Recipe
from task import Task, convnet

TASK = Task(
    name="fashion_cnn",
    title="Fashion-MNIST CNN 32C3-64C3-256",
    build=functools.partial(convnet, kernel=3, padding=1, channels=(32, 64), hidden=256),
    recipe=Recipe(epochs=5, batch=128, lr=3e-3, lr_fp32=3e-3, norm="batch"),
    read=fashion,
)
