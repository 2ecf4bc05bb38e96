"""`python -m sharedenc`."""

from sharedenc.cli import run

if __name__ == "__main__":
    run()
