"""`python -m haepo_jax.board`; the command is `haepo_jax.runner.commands.board`."""

import sys

from haepo_jax.runner.commands.board import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
