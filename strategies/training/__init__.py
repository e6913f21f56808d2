"""What a layout means for training: batches, memory, communication and arithmetic of an optimizer
step. Pure data and functions."""

from strategies.training.batches import bubble_share, check_batches, micro_batches
from strategies.training.flops import flops_per_token, model_flops_utilization
from strategies.training.host import HostMemory
from strategies.training.memory import TrainingMemory, fullest, training_memory
from strategies.training.traffic import TrainingTraffic, training_traffic

__all__ = [
    "HostMemory",
    "TrainingMemory",
    "TrainingTraffic",
    "bubble_share",
    "check_batches",
    "flops_per_token",
    "fullest",
    "micro_batches",
    "model_flops_utilization",
    "training_memory",
    "training_traffic",
]
