"""Files: checkpoints and weights, written whole or not at all, read without executing them."""
