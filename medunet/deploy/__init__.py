"""Where bundles go: annotators (MONAI Label, 3D Slicer), other engines and the model zoo, more than one machine."""
