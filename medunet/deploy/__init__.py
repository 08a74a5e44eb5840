"""Where annotators work (MONAI Label, 3D Slicer), and where one machine is not enough."""
