"""Rows of a batch that begin alike, computed once."""
