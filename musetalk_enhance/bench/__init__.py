"""What restoring costs on this machine, side by side with what it costs without this library.

`suite.run` is the whole of ``musetalk-enhance bench``; `overlap.overlapped` enhances one batch while a host
generates the next.
"""

from .overlap import overlapped
from .suite import Plan, run

__all__ = ["Plan", "overlapped", "run"]
