"""Tests of gitmirror: real git, real sockets, real processes."""
