"""Stands in the way of ``import popart`` in child processes, to give them the simulator's."""

import importlib
import sys

from ipu_proxynorm.simulator.alias.provide import provide

provide()
del sys.modules["popart"]
importlib.import_module("popart")
