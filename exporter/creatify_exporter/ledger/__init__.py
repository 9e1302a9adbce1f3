"""The ledger: counts each task once, even if the list forgets, repeats or reorders tasks."""
