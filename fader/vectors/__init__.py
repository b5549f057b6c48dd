"""Alignment vectors: differences of weights on disk, and their algebra."""
