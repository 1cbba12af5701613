"""What every benchmark shares: cases, candidates, measuring, the machine's own numbers, the table."""
