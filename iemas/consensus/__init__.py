"""The ordering of blocks: state machines and their messages (pure)."""
