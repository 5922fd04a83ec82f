"""Isolated places where tools run."""
