"""`python -m vgg_jax` is the command line."""

from vgg_jax.cli.app import main

if __name__ == "__main__":
    main()
