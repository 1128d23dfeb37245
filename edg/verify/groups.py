"""Groups of reference cases that belong to no system."""

from edg.verify.cases import Group
from edg.verify.images import io
from edg.verify.merges import merge

GROUPS = {"merge": Group(merge, exact=True), "io": Group(io, exact=True)}
