"""Keeping mirrors small and quick: repack, pack-refs, commit-graph, the end of anchors."""
