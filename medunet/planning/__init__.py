"""Planning: data -> fingerprint -> topology -> plan. It emits decisions and changes nothing."""

from .adapt import adapt as adapt
from .adapt import fit_preset as fit_preset
from .fingerprint import Fingerprint as Fingerprint
from .fingerprint import fingerprint as fingerprint
from .measure import default_cache as default_cache
from .plan import Plan as Plan
from .plan import plan as plan
from .schedule import spell_time as spell_time
from .topology import Decision as Decision
