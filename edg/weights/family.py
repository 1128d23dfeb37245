"""Names of a published family of models, as data: `weights` and `merging` know none by themselves."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """Names of the tensors of a family.

    name: of the family.
    roots: prefix of a published name -> component ("unet", "vae", ...).
    marks: roots found in no other family's names; whatever stands before one is a prefix to be removed.
    renames: part of a former name -> part of the published name.
    optional: group that may be absent as a whole ("adapter") -> predicate on names.
    identities: True for names of an optional group for which the identity [I | 0] stands in.
    buffers: names of computed tensors, kept in float32.
    kinds: name -> the module kinds it belongs to, as a recipe's `where` may say.
    kind_help: module kind -> description.
    title: names -> description of what they are, for people.
    """

    name: str
    roots: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)
    identities: Callable[[str], bool] = lambda name: False
    buffers: frozenset[str] = frozenset()
    kinds: Callable[[str], frozenset[str]] = lambda name: frozenset()
    kind_help: Mapping[str, str] = field(default_factory=dict)
    title: Callable[[Collection[str]], str] = lambda names: "unknown"

    def component(self, name: str) -> str:
        """The optional group or the component of a published name, "buffers", or "other"."""
        group = next((group for group, holds in self.optional.items() if holds(name)), None)
        if group or name in self.buffers:
            return group or "buffers"
        return next((part for root, part in self.roots.items() if name.startswith(root)), "other")

    def prefix(self, name: str) -> str | None:
        """The prefix before the published form of a name; None if no mark is in it."""
        places = (f".{name}".find(f".{mark}") for mark in self.marks)
        return next((name[:at] for at in places if at >= 0), None)

    def knows(self, name: str) -> bool:
        """True for a published name of the family, whatever stands before it."""
        return self.prefix(name) is not None or self.component(name) != "other"

    def matches(self, name: str, where: Iterable[str]) -> bool:
        """True if any of `where`, module kinds or name patterns (`*.bias`), means the tensor."""
        own = self.kinds(name)
        return any(w in own or fnmatch.fnmatchcase(name, w) for w in where)

    def parameter_counts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Number of elements per component, largest first; sizes: name -> number of elements."""
        total = Counter()
        for name, numel in sizes.items():
            total[self.component(name)] += numel
        return dict(total.most_common())


#: The family of names that no known family has.
UNKNOWN = Family("unknown")
#: A family, or a function that finds it from names.
FamilyOf = Family | Callable[[Collection[str]], Family]


def resolve(family: FamilyOf, names: Collection[str]) -> Family:
    """The family itself, or the one that the function finds for these names."""
    return family if isinstance(family, Family) else family(names)
