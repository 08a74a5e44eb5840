"""DICOM: files read as volumes, and labels written as objects that reference those files."""
