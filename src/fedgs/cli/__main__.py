"""``python -m fedgs.cli`` is ``fedgs``."""

from fedgs.cli import main

if __name__ == "__main__":
    main()
