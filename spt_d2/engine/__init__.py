"""Training and evaluation: what the command-line programs are thin layers over."""
