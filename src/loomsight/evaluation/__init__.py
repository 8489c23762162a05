"""How good is it: pixels, regions, the operating point from good cloth, and honest comparisons. No torch."""
