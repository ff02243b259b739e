"""What binds a run together: when to evaluate, checkpoints, progress, results, the commands that need no fit."""
