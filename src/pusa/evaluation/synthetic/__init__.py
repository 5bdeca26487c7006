"""A benchmark of models on every task of the synthetic world, all on the same scenes."""
