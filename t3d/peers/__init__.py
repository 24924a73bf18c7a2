"""Other projects' checkpoints and conventions."""
