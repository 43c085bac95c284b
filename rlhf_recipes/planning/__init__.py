"""The plan that `--plan` prints: steps, parameters and memory of a stage before it runs."""
