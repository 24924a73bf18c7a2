"""Clips in, datasets out: video, landmarks, masks, the prepared dataset and its batches."""
