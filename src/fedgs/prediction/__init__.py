"""Masks for new images: inputs of several kinds, the networks that look at them, and what is written."""
