"""What training and serving must agree on to the bit: items, prompts, encoder, scorer, bundle."""


class OutOfMemory(MemoryError):
    """The forward pass did not fit; a smaller batch may. Raised for CPU and GPU alike."""
