"""Finished runs as files that work without this package."""
