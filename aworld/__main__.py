"""`python -m aworld`: the command line."""

import sys

from aworld.cmd.main import main

if __name__ == "__main__":
    sys.exit(main())
