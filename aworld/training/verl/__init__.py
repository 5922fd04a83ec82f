"""Adapter to verl: the engine `verl`, its dataset, and the agent loop that its workers run."""
