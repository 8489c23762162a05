"""A fabric profile at work: pictures of a roll in, its defects with their places out."""
