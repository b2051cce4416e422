"""The command lines, each thin: settings in, calls to the rest of `runner`, an exit status out."""
