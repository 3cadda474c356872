"""PopTorch's operations beyond torch's: blocks, loops, slices, host functions, custom operators."""
