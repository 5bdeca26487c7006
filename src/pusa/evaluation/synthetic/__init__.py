"""Every task of the synthetic world, scored for any number of models on the same scenes."""
