"""The part that needs the models: samples, their scores and KL, and where they come from."""
