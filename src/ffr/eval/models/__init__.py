"""What needs a model: a checkpoint in this process, or a server."""
