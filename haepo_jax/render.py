"""`python -m haepo_jax.render`; the command is `haepo_jax.runner.commands.render`."""

import sys

from haepo_jax.runner.commands.render import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
