"""What guests may write, and the proof of what they wrote."""
