"""Rewrites a recorded program for the machine that computes it; results stay what they were.

Each module has one rewrite: a function from a `Block` to a `Block`. `passes` puts them in order.
"""
