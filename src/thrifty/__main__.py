"""`python -m thrifty` is the program `thrifty`."""

import sys

from thrifty.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
