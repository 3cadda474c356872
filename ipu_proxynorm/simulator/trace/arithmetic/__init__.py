"""Numbers as the device computes them, where torch would compute others."""
