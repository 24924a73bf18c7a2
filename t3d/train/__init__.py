"""Training: what a stage is, the stages, and the one loop that runs them."""
