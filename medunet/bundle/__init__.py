"""MONAI bundles: rendered from YAML, planned for a data set, copied with changes, explained and verified."""

from medunet.resources import find_bundle as find_bundle
from medunet.resources import get_model as get_model
from medunet.resources import resource_dir as resource_dir
from medunet.resources import shipped_bundles as shipped_bundles
from medunet.resources import shipped_models as shipped_models

from .explain import show as show
from .planned import PlannedBundle as PlannedBundle
from .planned import plan_beside as plan_beside
from .planned import plan_bundle as plan_bundle
from .planned import plan_once as plan_once
from .render import render as render
from .render import render_all as render_all
from .specialise import specialise as specialise
from .verify import verify_bundle as verify_bundle
