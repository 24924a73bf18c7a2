"""II-C: the conditional radiance field of a talking head."""
