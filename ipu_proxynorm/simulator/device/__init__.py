"""The simulated device: weights and random streams of each replica, and one host call."""
