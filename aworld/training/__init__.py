"""Training: what was recorded and scored goes back into the policy."""
