"""A step's arrays in the formats of other programs."""
