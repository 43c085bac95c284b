"""Computing the common prefix of a batch's rows once."""
