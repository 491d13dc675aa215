"""What laws share: the lists that they run over, and what they draw."""
