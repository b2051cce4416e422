"""`python -m haepo_jax.compare`; the command is `haepo_jax.runner.commands.compare`."""

import sys

from haepo_jax.runner.commands.compare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
