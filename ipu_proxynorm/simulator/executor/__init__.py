"""The parts of a wrapped model: checks, hooks, export, inspection, and weights kept in step."""
