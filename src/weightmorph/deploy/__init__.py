"""Take a model to a device: baked networks, deltas, exported and quantised graphs."""
