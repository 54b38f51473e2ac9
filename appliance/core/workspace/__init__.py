"""Ready workspaces: snapshots of branch tips as one tar, and the guest kit that fetches them."""
