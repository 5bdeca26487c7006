"""What is minimised in a training: one module for each objective. `base` has the interface and the players."""
