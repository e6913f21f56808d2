"""Training steps with torch's own parallel parts: DDP, FSDP2, DTensor and pipelining."""
