"""What a layout means for training: batches, memory, communication and arithmetic of an optimizer
step. Pure data and functions."""

from strategies.training.batches import bubble_share, check_batches, micro_batches
from strategies.training.memory import TrainingMemory, fullest, training_memory
from strategies.training.traffic import TrainingTraffic, training_traffic

__all__ = [
    "TrainingMemory",
    "TrainingTraffic",
    "bubble_share",
    "check_batches",
    "fullest",
    "micro_batches",
    "training_memory",
    "training_traffic",
]
