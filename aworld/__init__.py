"""AWorld, the agent runtime for self-improvement: agents act, every act is recorded exactly, the record is scored,
and what was learnt goes back into the agents."""

__version__ = "0.1.0"
