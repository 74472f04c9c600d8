"""`python -m vidqa.cli`: the same as the `vidqa` script, for where no script is installed."""

from vidqa.cli import main

main()
