"""Compares what the pack computes with tensors recorded from the published code: `python dev.py parity --goldens DIR`."""
