"""Rules that refuse the values of a training recipe that have the right type and cannot work."""
