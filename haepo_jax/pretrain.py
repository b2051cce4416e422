"""`python -m haepo_jax.pretrain`; the command is `haepo_jax.runner.commands.pretrain`."""

import sys

from haepo_jax.runner.commands.pretrain import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
