"""Logging, by the standard library."""
