"""What finished networks are worth: evaluate, predict, profile, transfer."""
