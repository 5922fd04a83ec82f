"""`python setup.py install`, as older guides have it: the same as `pip install .`. All else is in `pyproject.toml`."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit("setup.py knows only `install`; for everything else use pip, such as `pip install --editable .`")
    here = str(Path(__file__).resolve().parent)
    sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", here]))
