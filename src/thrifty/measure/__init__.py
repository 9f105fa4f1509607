"""What was lost and what was gained: quality against the original with intervals, size, speed, memory, and the certificate."""
