"""Layer operations: the functions that consume a weight, and their geometry."""
