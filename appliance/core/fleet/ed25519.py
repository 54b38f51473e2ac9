"""Signs with Ed25519 in pure Python, by RFC 8032, section 5.1.

It signs one nonce of a NATS server for each connection, in about 5 ms. It takes a time that depends on the key, which
somebody who runs code on the same processor could measure; the packages with C extensions that would not are not
allowed on a required path (docs/decisions/047-fleet-connection.md). It verifies nothing.
"""

from __future__ import annotations

import hashlib

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P

_Point = tuple[int, int, int, int]
"""A point of the curve in extended homogeneous coordinates (X, Y, Z, T), with x = X/Z, y = Y/Z and x*y = T/Z."""

_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE_Y = 46316835694926478169428394003475163141307993866256225615783033603165251855960
_BASE: _Point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def public_key(seed: bytes) -> bytes:
    """The public key of the private key `seed`; both have 32 bytes."""
    return _compressed(_multiplied(_secret_scalar(seed)[0]))


def sign(seed: bytes, message: bytes) -> bytes:
    """The signature of `message`, 64 bytes, with the private key `seed` of 32 bytes."""
    scalar, prefix = _secret_scalar(seed)
    public = _compressed(_multiplied(scalar))
    nonce = _hashed(prefix, message)
    commitment = _compressed(_multiplied(nonce))
    answer = (nonce + _hashed(commitment, public, message) * scalar) % _ORDER
    return commitment + answer.to_bytes(32, "little")


def _secret_scalar(seed: bytes) -> tuple[int, bytes]:
    if len(seed) != 32:
        raise ValueError("a private key has 32 bytes")
    digest = hashlib.sha512(seed).digest()
    # The lowest three bits and the highest are cleared and the second highest is set, by the RFC.
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    return scalar, digest[32:]


def _hashed(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % _ORDER


def _added(p: _Point, q: _Point) -> _Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiplied(scalar: int) -> _Point:
    """The base point times `scalar`."""
    total: _Point = (0, 1, 1, 0)
    power = _BASE
    while scalar:
        if scalar & 1:
            total = _added(total, power)
        power = _added(power, power)
        scalar >>= 1
    return total


def _compressed(point: _Point) -> bytes:
    inverse = pow(point[2], _P - 2, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")
