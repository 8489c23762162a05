"""What cloth is, to a computer: pictures, masks, defects, places, tiles, regions. No network, no torch."""
