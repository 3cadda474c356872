"""The names poptorch and popdist, given to other people's programs."""
