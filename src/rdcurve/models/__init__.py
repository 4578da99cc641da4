"""The paper's networks, and checkpoints that describe themselves."""
