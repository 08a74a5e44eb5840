"""Reading and writing images: headers are verified before a voxel is used, files are written atomically.

The modules of the names in ``__init__.pyi`` are imported when they are first used: the child process that decodes
untrusted files imports neither torch nor MONAI.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
