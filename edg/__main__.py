"""`python -m edg` is `edg`."""

from edg.cli.main import entry

entry()
