"""II-D Local-Global Standardized Space: AU encoder, codebooks, global encoder and decoder."""
