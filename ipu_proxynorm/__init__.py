"""Batch-independent normalization for Graphcore IPUs, and a CPU simulator of PopTorch."""

__version__ = "0.1.0"
