"""The main lines: pull, unpack, run. The only code that joins two rooms."""
