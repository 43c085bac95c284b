"""Rules that the values of a recipe must keep."""
