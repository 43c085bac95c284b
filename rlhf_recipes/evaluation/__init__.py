"""Whether training helped: samples are collected with the models, then analyzed without them."""
