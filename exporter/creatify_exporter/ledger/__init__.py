"""The ledger: counts each task once, whatever the list forgets, repeats or reorders."""
