"""Checkpoints of others: the kinds that are read (``sources``) and written (``exports``), and what lies beside them."""
