"""Training one trial: losses, schedule, loop, checkpoints, and the run from start to end."""
