"""Deployment: annotation tools (MONAI Label, 3D Slicer), other engines, the model zoo, several machines."""
