"""Compiled operators of other packages that PopTorch has handlers for."""
