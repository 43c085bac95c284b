"""Statistics of saved samples, without torch or figures."""
