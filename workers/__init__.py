"""What runs inside one GPU's actor."""
