"""Atomic file writes, file locks, exclusive output folders and the user's folders."""

from .atomic import atomic_path as atomic_path
from .atomic import damaged_checkpoint as damaged_checkpoint
from .atomic import is_whole_zip as is_whole_zip
from .atomic import keep_as as keep_as
from .atomic import remove_remains as remove_remains
from .atomic import sha256_of as sha256_of
from .atomic import sync_folder as sync_folder
from .atomic import write_atomically as write_atomically
from .locks import CAN_LOCK as CAN_LOCK
from .locks import OWNER_NAME as OWNER_NAME
from .locks import Hold as Hold
from .locks import claim as claim
from .locks import knows_locks as knows_locks
from .locks import lock as lock
from .places import cache_folder as cache_folder
from .places import check_target as check_target
from .places import config_folder as config_folder
from .places import reject_other_files as reject_other_files
from .places import require_new as require_new
from .places import require_path as require_path
