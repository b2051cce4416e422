"""`python -m haepo_jax.evaluate`; the command is `haepo_jax.runner.commands.evaluate`."""

import sys

from haepo_jax.runner.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
