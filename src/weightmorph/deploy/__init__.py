"""What leaves the workshop: baked networks, deltas, exported graphs."""
