"""Ranks that fail or hang, found and reported."""
