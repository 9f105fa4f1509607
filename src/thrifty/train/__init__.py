"""The training loop, and nothing else: what is trained, and against what, is an `Objective`."""

from thrifty.train.loop import Objective, Schedule, train

__all__ = ["Objective", "Schedule", "train"]
