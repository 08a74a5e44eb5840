"""Running a network: device, number format, fast forms, weights and ensembles."""

from .autocast import autocast as autocast
from .autocast import fast_dtype as fast_dtype
from .autocast import resolve_device as resolve_device
from .autocast import resolve_dtype as resolve_dtype
from .ensemble import EnsembleLogits as EnsembleLogits
from .ensemble import ensemble_of as ensemble_of
from .fast import FastNetwork as FastNetwork
from .fast import Form as Form
from .fast import choose_form as choose_form
from .fast import keep_freed_memory as keep_freed_memory
from .folding import fold_batch_norm as fold_batch_norm
from .openvino import has_openvino as has_openvino
from .timing import possible_forms as possible_forms
from .timing import time_forms as time_forms
from .weights import SAFE_SUFFIX as SAFE_SUFFIX
from .weights import TransferReport as TransferReport
from .weights import load_checkpoint as load_checkpoint
from .weights import load_weights as load_weights
from .weights import save_checkpoint as save_checkpoint
from .weights import save_weights as save_weights
from .weights import transfer_weights as transfer_weights
