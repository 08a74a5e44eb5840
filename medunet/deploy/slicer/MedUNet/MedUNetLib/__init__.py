"""What the module MedUNet does, free of Qt and of medunet: Slicer's Python has neither torch nor MONAI.

Only `scene` needs Slicer's VTK; the rest needs numpy and the standard library.
"""
