"""The optimiser on the device: its state, its rules, and its link to the host's."""
