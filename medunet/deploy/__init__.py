"""Where annotators work: MONAI Label and 3D Slicer."""
