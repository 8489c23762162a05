"""What a cloth looks like, in numbers: its texture code, its weave's period, and whether it is known."""
