"""the paper II-A, 3D Prior Extraction: the morphable model, its light, its images, its tracking."""
