"""Library of the module MedUNet, free of Qt and of medunet: Slicer's Python has neither torch nor MONAI.

Only `scene` needs Slicer's VTK and MRML; the rest needs the standard library.
"""
