"""Adapter to TRL: the engine `trl`, and SFT and DPO from stored trajectories."""
