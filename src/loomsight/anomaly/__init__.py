"""Normality: what cloth looks like when it is good, and how far a place is from that."""
