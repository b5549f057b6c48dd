"""What ships: data and vectors for the built-in model."""
