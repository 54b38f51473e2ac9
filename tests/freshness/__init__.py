"""Freshness: webhooks, failures in words, alerts, events."""
