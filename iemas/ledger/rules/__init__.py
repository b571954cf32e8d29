"""What each kind of transaction does, by subject. Source: docs/spec/ledger.md §5."""
