"""What training and serving must agree on to the bit: items, prompts, encoder, scorer, bundle."""

import os

# In bfloat16 on CPU, oneDNN keeps code for each shape that it has met, and PyTorch's binding to it
# keeps more: half a megabyte of each, and a thousand of each by default. Batches have hundreds of
# shapes, so a service would grow for hours. Read by the libraries when torch is first imported.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "256")


class OutOfMemory(MemoryError):
    """The forward pass did not fit; a smaller batch may. Raised for CPU and GPU alike."""
