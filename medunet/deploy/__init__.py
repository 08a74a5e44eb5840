"""Where bundles go: MONAI Label and 3D Slicer for those who annotate, other engines and the model zoo."""
