"""`python -m edg` is `edg`."""

from edg.cli import entry

entry()
