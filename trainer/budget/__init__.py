"""What true masks are worth: a simulated annotator."""
