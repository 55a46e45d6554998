"""ChronicleWeaver broken on purpose: traffic, faults, and a checker that trusts nobody. `python -m tests.chaos`."""
