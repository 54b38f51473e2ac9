"""What is kept in SQLite: the registry, the mirrors' health, refreshes and the audit log."""
