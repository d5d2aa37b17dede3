"""`python -m ffr`, which launchers such as accelerate and torchrun need: the `ffr` command."""

from ffr.cli.main import run

if __name__ == "__main__":
    run()
