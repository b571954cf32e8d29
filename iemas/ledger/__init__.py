"""The ledger: one deterministic state machine that every node runs (pure)."""
