"""Networks that find defects."""
