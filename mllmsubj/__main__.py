"""`python -m mllmsubj COMMAND`."""

from mllmsubj.app.cli import main

main()
