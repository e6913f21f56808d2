"""The engine `vllm`: what it is given, how a run of it is made, and what is read of its steps."""

from workers.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
