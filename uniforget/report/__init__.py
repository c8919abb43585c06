"""What forgetting changed, for people to read: sweeps, reports, and how a picture was made."""
