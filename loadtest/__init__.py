"""How fast ChronicleWeaver is, beside references that are measured in the same run: `make bench`."""
