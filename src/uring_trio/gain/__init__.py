"""Callback servers: Gain's API on nurseries."""
