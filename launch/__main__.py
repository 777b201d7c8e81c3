"""`python -m launch`: the command line where `maktab` itself is not installed, as on a worker."""

from launch.cli import main

main()
