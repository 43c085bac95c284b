"""Figures, sentences and pages written from the results."""
