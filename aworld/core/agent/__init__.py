"""Agents and the teams that they form."""
