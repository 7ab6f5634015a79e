"""Bytes that show whether they are still what was written: a checksum (CRC-32) is their end.

Neither Redis nor SQLite looks at what it keeps; a bit that a disk or a wire has turned would be
another vector.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

CHECKSUM = struct.Struct("<I")


def seal(body: bytes) -> bytes:
    """Some bytes, their checksum behind them."""
    return body + CHECKSUM.pack(zlib.crc32(body))


def unseal(stored: bytes) -> bytes | None:
    """What was sealed; None if that is not what is there."""
    body = stored[: -CHECKSUM.size]
    return body if stored[-CHECKSUM.size :] == CHECKSUM.pack(zlib.crc32(body)) else None


def sealed(vector: NDArray[np.float32]) -> bytes:
    """A vector (W,) as it is stored: little-endian float32."""
    return seal(vector.astype("<f4").tobytes())


def unsealed(stored: bytes) -> NDArray[np.float32] | None:
    """The vector (W,) in such bytes; None if they are damaged."""
    body = unseal(stored)
    if body is None or len(body) % 4:
        return None
    return np.frombuffer(body, "<f4").astype(np.float32)
