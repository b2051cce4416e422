"""`python -m haepo_jax.train`; the command is `haepo_jax.runner.commands.train`."""

import sys

from haepo_jax.runner.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
