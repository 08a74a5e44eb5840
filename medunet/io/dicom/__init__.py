"""DICOM: from files to voxels, and from labels to objects that cite those files."""
