"""Parts of the module without Qt and medunet: Slicer's Python has neither torch nor MONAI."""
