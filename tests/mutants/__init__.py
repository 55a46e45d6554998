"""Proof that the tests guard the rules: each mutant breaks one, and a test has to fail. `python -m tests.mutants`."""
