"""Tables of what was predicted and not measured."""
