"""How good a backbone is: one downstream task per file, on features that are computed once."""
