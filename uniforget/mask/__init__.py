"""What was learned, what it does to a weight, and the files it lies in."""
