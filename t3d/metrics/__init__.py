"""III Metrics: arrays in, figures out."""
