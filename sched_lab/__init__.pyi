__version__: str

from .errors import OutOfReach as OutOfReach
from .errors import SweepError as SweepError
from .run.api import plan as plan
from .run.api import submit as submit
from .store.folder import Store as Store
from .sweep.spec import read_sweep as read_sweep
