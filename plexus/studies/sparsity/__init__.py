"""Sparse wiring and sparse activity."""
