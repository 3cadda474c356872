"""Computes several micro-batches at once: a recorded program of one becomes a program of many.

Every micro-batch keeps what is its own: statistics, mixing, random draws, losses. A tensor that
differs between micro-batches is one tensor of all: *stacked*, with the micro-batches as a new
first dimension, or *folded*, with them joined to the dimension that holds the images. Operators
that leave the images alone (convolutions, Group Norm, activations) take folded tensors as they
are; others take stacked ones; an operator that has no rule is called for one micro-batch after the
other. Of a gradient only the sum over the micro-batches is computed, where that is possible.
"""
