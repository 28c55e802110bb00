"""`python -m mllmsubj COMMAND`."""

from mllmsubj.cli.main import main

main()
