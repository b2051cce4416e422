"""The command lines, each thin: settings in, calls to the rest of `runner`, an exit status out."""

COMMANDS = {
    "train": "train one algorithm on one environment",
    "sweep": "train many configurations, in as few compiled programs as possible",
    "compare": "train several algorithms on the same environments and compare them",
    "evaluate": "play many episodes with a run's policies",
    "render": "record one episode of a run's policy as a GIF",
    "plot": "draw the learning curves of runs",
    "board": "write one HTML page with the curves and settings of runs and sweeps",
}
"""The commands by name, with what each does: `python -m haepo_jax <name>`, and the modules of this package."""

ALL = (*COMMANDS, "llm", "completion")
"""What `python -m haepo_jax` takes as its first argument."""
