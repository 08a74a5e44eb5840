"""medunet: U-Nets for labelled medical images, as ordinary MONAI bundles."""

__version__ = "0.1.0"
