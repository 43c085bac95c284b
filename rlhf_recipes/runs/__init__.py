"""The folder of a run: locked, replaced as a whole, resumed, and found complete."""
