"""Stands in the way of ``import popdist`` in child processes, to give them the simulator's."""

import importlib
import sys

from ipu_proxynorm.simulator.alias.provide import provide

provide()
del sys.modules["popdist"]
importlib.import_module("popdist")
