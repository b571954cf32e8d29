"""The resources of a client: chat, completions, sessions, models."""
