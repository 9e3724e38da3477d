"""Whole studies: a plan of many runs, and what gets through them."""
