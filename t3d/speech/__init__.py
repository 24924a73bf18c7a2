"""II-B, 3D Prior Aided Audio Disentanglement: features, SyncNet, LipNet, StyleNet, FuseNet."""
