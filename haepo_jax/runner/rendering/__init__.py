"""Pictures of episodes, drawn without a display: GIFs of flat tasks, a self-contained page for physics."""
