"""`python -m mofang`: the same as the command `mofang`."""

from mofang.cli.main import main

main()
