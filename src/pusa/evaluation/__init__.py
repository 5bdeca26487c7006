"""How good a clip, or a model, is: exact where the truth is known, by well-kept libraries where it is not."""
