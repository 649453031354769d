"""`python -m clipgraft`."""

from clipgraft.cli import main

main()
