"""Prints the command of the README's block marked `<!-- ci: NAME -->`, so that CI runs what users are told to run."""

import re
import sys
from pathlib import Path

readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
block = re.search(rf"<!-- ci: {re.escape(sys.argv[1])} -->\s*```bash\n(.*?)```", readme, re.DOTALL)
if block is None:
    sys.exit(f"README.md has no block marked <!-- ci: {sys.argv[1]} -->")
print(block.group(1), end="")
