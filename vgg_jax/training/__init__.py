"""Steps, loop, metrics and checkpoints of a training."""
