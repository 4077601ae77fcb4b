"""``python -m pyctrd``: the command line."""

from pyctrd.cli.main import main

main()
