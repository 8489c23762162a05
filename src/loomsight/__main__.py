"""``python -m loomsight``: the command line where its script is not on the path."""

from loomsight.cli import main

if __name__ == "__main__":
    main()
