"""Backends: the inference servers a node can stand beside, behind one interface (`base`)."""
