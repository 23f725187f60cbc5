from .runs import load_runs as load_runs
from .statistics.law import best_b as best_b
from .statistics.law import recommend as recommend
from .statistics.ranking import best_cells as best_cells
