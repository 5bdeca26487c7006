"""`python -m pusa` is the console command `pusa`."""

import sys

from pusa.cli import main

if __name__ == "__main__":
    sys.exit(main())
