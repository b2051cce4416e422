"""`python -m haepo_jax.sweep`; the command is `haepo_jax.runner.commands.sweep`."""

import sys

from haepo_jax.runner.commands.sweep import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
