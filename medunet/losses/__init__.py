"""Losses that MONAI lacks; use `monai.losses` for Dice, generalised Dice and others.

Conventions: logits `(B, C, *spatial)`, targets class indices `(B, 1, *spatial)`, weight maps `(B, 1, *spatial)`.
MONAI's losses follow them with ``softmax=True, to_onehot_y=True``; give them float32 logits.
"""

from .border_weighted import BorderWeightedCELoss as BorderWeightedCELoss
from .deep_supervision import DeepSupervisionLoss as DeepSupervisionLoss
from .dice import DiceCELoss as DiceCELoss
from .distance import DistanceLoss as DistanceLoss
from .regions import RegionDiceCELoss as RegionDiceCELoss
