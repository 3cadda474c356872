"""The command line: one module a sub-command; each parses, calls the library and prints."""

from ipu_proxynorm.cli.main import main

__all__ = ["main"]
