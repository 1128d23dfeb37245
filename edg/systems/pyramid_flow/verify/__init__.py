"""Groups of reference cases of this system: name -> case -> outputs."""

from edg.systems.pyramid_flow.verify import numbers
from edg.verify.cases import Group

GROUPS: dict[str, Group] = {
    "pyramid_schedule": Group(numbers.schedule, exact=True),
    "pyramid_noise": Group(numbers.noise, exact=True),
    "pyramid_unit": Group(numbers.unit, exact=True),
    "pyramid_position": Group(numbers.position, exact=True),
    "pyramid_history": Group(numbers.past, exact=True),
}
