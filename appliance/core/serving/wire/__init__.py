"""git's wire protocol as bytes: pure parsers and writers, no sockets.

- `pktline`: framing: four hex digits of length, then the payload (gitprotocol-common).
- `requests`: the first packet of git://, the ref commands of a push, and receive-pack's report (gitprotocol-pack).
- `v2`: requests of protocol v2, and the parts of a fetch that determine its response (gitprotocol-v2).

A request: bytes are fed as they arrive. A complete request comes out as a dataclass. Bytes that cannot be a request
raise PacketError or RequestError, whose text is for the guest.

What always holds: a parser keeps a bounded number of bytes and lines, and its work is proportional to its input. It
accepts what git's own server accepts. A request that it does not understand is refused or passed to git, never guessed
at. A fetch gets a cache key only if its response depends on nothing but the request and the mirror's objects and tags.
"""
