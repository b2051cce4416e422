"""`python -m haepo_jax.plot`; the command is `haepo_jax.runner.commands.plot`."""

import sys

from haepo_jax.runner.commands.plot import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
