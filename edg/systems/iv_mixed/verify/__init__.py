"""Groups of reference cases of this system: name -> case -> outputs."""

from edg.systems.iv_mixed.verify import loops, schedules
from edg.verify.cases import Group

GROUPS: dict[str, Group] = {
    "iv_curve": Group(schedules.curves, exact=True),
    "iv_grid": Group(schedules.grids, exact=True),
    "iv_match": Group(schedules.matching, exact=True),
    "iv_loop": Group(loops.loop, exact=True),
}
