"""Networks: one n-dimensional U-Net, its published variants by name, and the arithmetic of its sizes."""

from . import presets as presets
from .activation import check_activation as check_activation
from .activation import to_logits as to_logits
from .activation import to_probabilities as to_probabilities
from .batch_norm import SynchronizedBatchNorm as SynchronizedBatchNorm
from .batch_norm import synchronize_norms as synchronize_norms
from .foreign import only_tensor as only_tensor
from .foreign import window_dependence as window_dependence
from .joint import JointNetwork as JointNetwork
from .shapes import UNetShapes as UNetShapes
from .unet import UNet as UNet
