"""Learning: one loop for every network, and checkpoints that survive a power cut."""
