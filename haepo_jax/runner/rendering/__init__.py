"""Episodes as GIFs, drawn without a display, and one HTML page of many runs."""
