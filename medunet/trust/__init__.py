"""Whether a bundle is safe to run, judged from its text before anything is imported, parsed by MONAI or unpickled."""

from .archive import unpack as unpack
from .known import missing_from_known as missing_from_known
from .known import write_expressions as write_expressions
from .verdict import TRUST_VARIABLE as TRUST_VARIABLE
from .verdict import UntrustedBundleError as UntrustedBundleError
from .verdict import Verdict as Verdict
from .verdict import adopt as adopt
from .verdict import judge as judge
from .verdict import require_trust as require_trust
from .weights import forget_weights as forget_weights
from .weights import record_weights as record_weights
