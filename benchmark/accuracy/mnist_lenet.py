"""MNIST digits, LeNet 32C5-MP2-64C5-MP2-512-10 as in TWN, all four layers ternary. Data: mnist.npz (see data.py)."""

import functools

from data import mnist
from recipe import Recipe
from task import Task, convnet

TASK = Task(
    name="mnist_lenet",
    title="MNIST LeNet 32C5-64C5-512",
    build=functools.partial(convnet, kernel=5, padding=0, channels=(32, 64), hidden=512),
    recipe=Recipe(epochs=4, batch=128, lr=3e-3, lr_fp32=3e-3, norm="batch"),
    read=mnist,
)
