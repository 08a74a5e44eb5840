"""Networks: one n-dimensional U-Net, its published variants by name, and the integer arithmetic of its sizes."""

from __future__ import annotations

from . import presets as presets
from .activation import ACTIVATIONS as ACTIVATIONS
from .activation import check_activation as check_activation
from .activation import to_logits as to_logits
from .activation import to_probabilities as to_probabilities
from .allocation import keep_freed_memory as keep_freed_memory
from .autocast import autocast as autocast
from .autocast import fast_dtype as fast_dtype
from .autocast import resolve_device as resolve_device
from .autocast import resolve_dtype as resolve_dtype
from .batch_norm import SynchronizedBatchNorm as SynchronizedBatchNorm
from .batch_norm import synchronize_norms as synchronize_norms
from .ensemble import Ensemble as Ensemble
from .ensemble import EnsembleLogits as EnsembleLogits
from .ensemble import ensemble_of as ensemble_of
from .fast import FastNetwork as FastNetwork
from .folding import fold_batch_norm as fold_batch_norm
from .foreign import only_tensor as only_tensor
from .foreign import window_dependence as window_dependence
from .openvino_runtime import has_openvino as has_openvino
from .public import PUBLIC as PUBLIC
from .public import load_public as load_public
from .shapes import UNetShapes as UNetShapes
from .transfer import TransferReport as TransferReport
from .transfer import transfer_weights as transfer_weights
from .unet import UNet as UNet
from .weights import SAFE_SUFFIX as SAFE_SUFFIX
from .weights import load_checkpoint as load_checkpoint
from .weights import load_weights as load_weights
from .weights import save_checkpoint as save_checkpoint
from .weights import save_weights as save_weights
