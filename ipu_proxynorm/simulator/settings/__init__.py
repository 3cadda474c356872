"""What the options are made of: groups, placements, tensor locations, execution strategies."""
