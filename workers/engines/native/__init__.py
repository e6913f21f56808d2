"""The engine `torch`: our own decoder, paged cache, continuous batching and pipeline."""
