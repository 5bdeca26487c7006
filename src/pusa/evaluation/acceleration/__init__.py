"""How fast and how close the accelerations are on a model, and which sign of change tells most."""
