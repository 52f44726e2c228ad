"""A small TFDS data set; TFDS wants a builder to be a module in a package."""
