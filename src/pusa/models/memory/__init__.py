"""How much memory a clip needs, estimated without weights, and how a model is laid out to need less."""
