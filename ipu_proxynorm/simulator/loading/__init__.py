"""Asynchronous data loading: the worker process and the parent's side of it."""
