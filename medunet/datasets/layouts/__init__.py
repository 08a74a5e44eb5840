"""Layouts: which images and labels a folder contains."""
