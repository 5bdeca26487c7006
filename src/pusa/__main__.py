"""`python -m pusa` is the console command `pusa`."""

from pusa.cli import main

if __name__ == "__main__":
    main()
