"""A configured run before it runs: does it fit, what would help, which layout is fastest."""
