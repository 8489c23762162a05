"""Picture in, score map out: the only part of a network that a line knows."""
