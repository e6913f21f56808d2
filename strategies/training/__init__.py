"""What a layout means for training: batches, memory, communication and arithmetic of an optimizer
step. Pure data and functions."""

from strategies.training.batches import bubble_share, check_batches, micro_batches

__all__ = ["bubble_share", "check_batches", "micro_batches"]
