"""medunet: U-Nets for labelled medical images, as ordinary MONAI bundles.

The names in ``__init__.pyi`` are attributes of this package; their modules are imported when they are first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
