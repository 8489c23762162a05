"""Training samples for a fabric that has no labels: known defects and drawn ones, set into its good cloth."""
