"""Push adapters to the Hub with their model cards."""
