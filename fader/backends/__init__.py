"""Backends: what turns requests into answers."""
